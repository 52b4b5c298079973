"""The engine over a deterministic fake: batching, loop, events."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from services.executor.engine.batching import Batcher, Limits, Plan
from services.executor.engine.engine import Engine
from services.executor.engine.items import Event, Item
from services.executor.engine.loop import EngineLoop
from tests.executor.fake_base import FakeBase, key, loaded


def item(number: int, name: str = "m", length: int = 4, **kwargs: object) -> Item:
    base = str(kwargs.pop("base", "base"))
    ids = np.arange(1, length + 1, dtype=np.int64)
    return Item(number, key(name, base), ids, **kwargs)  # type: ignore[arg-type]


@pytest.fixture
def fake() -> FakeBase:
    fake = FakeBase()
    fake.resident.add(key("m"))
    return fake


def ids(plan: Plan | None) -> list[int]:
    return [] if plan is None else [row.item.id for row in plan.rows]


def batcher(fake: FakeBase, max_tokens: int = 100, max_rows: int = 8) -> Batcher:
    return Batcher(
        {"base": loaded(fake), "other": loaded(fake, "other")}, Limits(max_tokens, max_rows)
    )


def test_a_batch_keeps_to_rows_and_tokens_oldest_first(fake: FakeBase) -> None:
    waiting = batcher(fake, max_tokens=10, max_rows=3)
    for number in range(5):
        waiting.add(item(number, length=4))
    assert ids(waiting.plan()) == [0, 1]
    assert ids(waiting.plan()) == [2, 3]
    assert ids(waiting.plan()) == [4]
    assert waiting.plan() is None
    assert waiting.num_tokens == 0


def test_a_row_longer_than_the_budget_runs_alone(fake: FakeBase) -> None:
    waiting = batcher(fake, max_tokens=10)
    waiting.add(item(0, length=50))
    waiting.add(item(1))
    assert ids(waiting.plan()) == [0]
    assert ids(waiting.plan()) == [1]


def test_a_long_row_shares_its_batch_with_short_ones(fake: FakeBase) -> None:
    waiting = batcher(fake, max_tokens=100)
    for number in range(6):
        waiting.add(item(number, length=4))
    waiting.add(item(6, length=60))
    assert ids(waiting.plan()) == [0, 1, 2, 3, 4, 5, 6]


def test_a_cold_item_delays_no_other_and_is_oldest_once_it_is_ready(fake: FakeBase) -> None:
    waiting = batcher(fake, max_rows=2)
    waiting.add(item(0, "cold"))
    for number in range(1, 5):
        waiting.add(item(number))
    assert ids(waiting.plan()) == [1, 2]
    assert fake.wanted == [key("cold")]
    fake.resident.add(key("cold"))
    assert waiting.promote() == []
    assert ids(waiting.plan()) == [0, 3]


def test_a_batch_is_of_one_base_and_the_oldest_goes_first(fake: FakeBase) -> None:
    fake.resident.add(key("m", "other"))
    waiting = batcher(fake)
    waiting.add(item(0, base="other"))
    waiting.add(item(1))
    waiting.add(item(2, base="other"))
    first = waiting.plan()
    assert first is not None
    assert first.unsplit_digest == "other"
    assert ids(first) == [0, 2]
    assert ids(waiting.plan()) == [1]


def test_an_adapter_that_cannot_be_loaded_fails_its_items_only(fake: FakeBase) -> None:
    waiting = batcher(fake)
    waiting.add(item(0, "huge"))
    waiting.add(item(1, "huge"))
    waiting.add(item(2))
    fake.broken[key("huge")] = ResourceExhausted("too large")
    events = waiting.promote()
    assert [(event.item.id, type(event.error)) for event in events] == [
        (0, ResourceExhausted),
        (1, ResourceExhausted),
    ]
    assert ids(waiting.plan()) == [2]


def test_an_item_that_goes_on_from_earlier_tokens_is_refused_by_field(fake: FakeBase) -> None:
    waiting = batcher(fake)
    [event] = waiting.add(item(0, kv_ref="handle"))
    assert isinstance(event.error, InvalidArgument)
    assert (event.error.field, event.is_final) == ("kv_ref", True)
    assert (len(waiting), waiting.num_tokens, waiting.plan()) == (0, 0, None)


def test_cancelled_and_expired_items_leave_and_unpin(fake: FakeBase) -> None:
    waiting = batcher(fake)
    waiting.add(item(0))
    waiting.add(item(1, deadline=time.monotonic() - 1))
    waiting.add(item(2, "cold", deadline=time.monotonic() - 1))
    waiting.add(item(3, "cold"))
    waiting.add(item(4))
    assert [type(event.error) for event in waiting.cancel(0)] == [Cancelled]
    assert waiting.cancel(0) == []
    expired = waiting.expire()
    assert {event.item.id for event in expired} == {1, 2}
    assert {type(event.error) for event in expired} == {DeadlineExceeded}
    assert [event.item.id for event in waiting.cancel(3)] == [3]
    assert fake.num_pins == 1
    assert ids(waiting.plan()) == [4]
    assert len(waiting) == waiting.num_tokens == 0


def test_deadlines_of_what_ran_long_ago_are_not_kept(fake: FakeBase) -> None:
    waiting = batcher(fake, max_tokens=400, max_rows=100)
    in_an_hour = time.monotonic() + 3600
    tracemalloc.start()
    try:
        for start in range(0, 6_000, 100):
            for number in range(start, start + 100):
                waiting.add(item(number, deadline=in_an_hour))
            run_out(waiting.plan(), fake)
        assert len(waiting) == 0
        kept_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept_bytes < 300_000


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.booleans()), max_size=60))
@settings(deadline=None)
def test_every_item_leaves_exactly_once(arrivals: list[tuple[int, int, bool]]) -> None:
    fake = FakeBase()
    waiting = batcher(fake, max_tokens=40, max_rows=4)
    left: list[int] = []
    for number, (model, length, is_cancelled) in enumerate(arrivals):
        left += [e.item.id for e in waiting.add(item(number, f"m{model}", length))]
        if is_cancelled:
            left += [e.item.id for e in waiting.cancel(number // 2)]
        if number % 3 == 0:
            fake.resident ^= {key(f"m{number % 6}")}
            left += [e.item.id for e in waiting.promote()]
            left += run_out(waiting.plan(), fake)
    fake.resident = {key(f"m{model}") for model in range(6)}
    left += [e.item.id for e in waiting.promote()]
    while plan := waiting.plan():
        left += run_out(plan, fake)
    assert sorted(left) == list(range(len(arrivals)))
    assert (len(waiting), waiting.num_tokens, fake.num_pins) == (0, 0, 0)


def run_out(plan: Plan | None, fake: FakeBase) -> list[int]:
    for row in plan.rows if plan else ():
        fake.release(row.slot)
    return ids(plan)


def test_a_step_answers_each_row_with_its_own(fake: FakeBase) -> None:
    fake.resident.add(key("longer"))
    waiting = batcher(fake)
    waiting.add(item(0, length=3))
    waiting.add(item(1, "longer", length=5, num_first_segment_tokens=2))
    plan = waiting.plan()
    assert plan is not None
    events = Engine({"base": loaded(fake)}).step(plan)
    outputs = [event.output for event in events]
    np.testing.assert_array_equal(outputs[0], np.array([6, 0, 1]))
    np.testing.assert_array_equal(outputs[1], np.array([15, 3, 6]))
    assert outputs[0] is not None
    assert outputs[0].dtype == np.float32
    assert all(event.is_final and event.error is None for event in events)
    assert fake.num_pins == 0


def test_rows_that_enter_later_come_last_and_keep_their_answers(fake: FakeBase) -> None:
    waiting = batcher(fake)
    waiting.add(item(0, length=3, entry_layer=1))
    waiting.add(item(1, length=5))
    plan = waiting.plan()
    assert plan is not None
    events = Engine({"base": loaded(fake)}).step(plan)
    assert fake.entry_layers == [0, 1]
    sums = {event.item.id: float(event.output[0]) for event in events if event.output is not None}
    assert sums == {0: 6.0, 1: 15.0}


def test_a_failing_step_ends_its_items_without_details(fake: FakeBase) -> None:
    def fail() -> None:
        raise RuntimeError("secret")

    fake.before_run = fail
    waiting = batcher(fake)
    waiting.add(item(0))
    plan = waiting.plan()
    assert plan is not None
    [event] = Engine({"base": loaded(fake)}).step(plan)
    assert isinstance(event.error, Internal)
    assert "secret" not in event.error.message
    assert fake.num_pins == 0


def step_of_three_models(fake: FakeBase) -> dict[int, Event]:
    """Items 0 and 3 of m, 1 and 4 of n, 2 of o, in one batch."""
    fake.resident |= {key("n"), key("o")}
    waiting = batcher(fake)
    for number in range(5):
        waiting.add(item(number, "mno"[number % 3]))
    plan = waiting.plan()
    assert ids(plan) == [0, 1, 2, 3, 4]
    assert plan is not None
    events = Engine({"base": loaded(fake)}).step(plan)
    assert fake.num_pins == 0
    assert len(events) == 5
    return {event.item.id: event for event in events}


def test_a_model_that_fails_a_batch_fails_alone(fake: FakeBase) -> None:
    fake.failing[key("n")] = RuntimeError("its head is broken")
    events = step_of_three_models(fake)
    assert {number: type(event.error) for number, event in events.items() if event.error} == {
        1: Internal,
        4: Internal,
    }
    assert all(events[number].output is not None for number in (0, 2, 3))


def test_a_device_without_memory_is_one_error_of_the_batch(fake: FakeBase) -> None:
    fake.failing[key("n")] = torch.OutOfMemoryError("no memory")
    events = step_of_three_models(fake)
    assert {type(event.error) for event in events.values()} == {Unavailable}
    assert fake.batches == [5]


class Collector:
    """Events by item, as they come."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, events: list[Event]) -> None:
        with self._changed:
            self.events += events
            self._changed.notify_all()

    def wait(self, num_events: int) -> dict[int, Event]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.events) >= num_events, timeout=10)
        return {event.item.id: event for event in self.events}


@pytest.fixture
def collector() -> Collector:
    return Collector()


@pytest.fixture(params=[(1, 0), (3, 0), (1, 1)])
def loop(
    fake: FakeBase, collector: Collector, request: pytest.FixtureRequest
) -> Iterator[EngineLoop]:
    engine = Engine({"base": loaded(fake)})
    max_in_flight, num_workers = request.param
    loop = EngineLoop(
        engine, batcher(fake), collector, max_in_flight=max_in_flight, num_workers=num_workers
    )
    loop.start()
    yield loop
    loop.stop()


def test_the_loop_answers_all_that_is_submitted(loop: EngineLoop, collector: Collector) -> None:
    for start in range(0, 40, 10):
        loop.submit([item(number) for number in range(start, start + 10)])
    answered = collector.wait(40)
    assert len(collector.events) == len(answered) == 40


def test_a_cold_item_is_answered_when_its_adapter_comes(
    loop: EngineLoop, fake: FakeBase, collector: Collector
) -> None:
    loop.submit([item(0, "cold"), item(1)])
    assert set(collector.wait(1)) == {1}
    fake.resident.add(key("cold"))
    loop.wake()
    assert collector.wait(2)[0].error is None


def test_an_idle_loop_notices_a_passing_deadline(loop: EngineLoop, collector: Collector) -> None:
    loop.submit([item(0, "cold", deadline=time.monotonic() + 0.05)])
    assert isinstance(collector.wait(1)[0].error, DeadlineExceeded)


def test_stopping_ends_what_still_waits(
    loop: EngineLoop, fake: FakeBase, collector: Collector
) -> None:
    loop.submit([item(0, "cold")])
    loop.submit([item(1)])
    collector.wait(1)
    loop.stop()
    assert isinstance(collector.wait(2)[0].error, Unavailable)


def test_what_comes_during_a_batch_is_batched_together(
    loop: EngineLoop, fake: FakeBase, collector: Collector
) -> None:
    started, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go_on.wait(10)

    fake.before_run = hold
    loop.submit([item(0)])
    assert started.wait(10)
    for number in range(1, 7):
        loop.submit([item(number)])
    go_on.set()
    collector.wait(7)
    assert fake.batches == [1, 6]


class Gates:
    """Holds each batch until it is let go."""

    def __init__(self) -> None:
        self.num_running = 0
        self._changed = threading.Condition()
        self._num_let_go = 0

    def __call__(self) -> None:
        with self._changed:
            self.num_running += 1
            mine = self.num_running
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._num_let_go >= mine, timeout=10)

    def wait_for(self, num_running: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.num_running >= num_running, timeout=10)

    def let_go(self, count: int) -> None:
        with self._changed:
            self._num_let_go = count
            self._changed.notify_all()


def test_as_many_batches_compute_at_once_as_there_are_workers(
    fake: FakeBase, collector: Collector
) -> None:
    fake.before_run = gates = Gates()
    loop = EngineLoop(Engine({"base": loaded(fake)}), batcher(fake), collector, num_workers=2)
    loop.start()
    for number in range(3):
        loop.submit([item(number)])
        gates.wait_for(min(number + 1, 2))
    loop.submit([item(3)])
    gates.let_go(1)
    collector.wait(1)  # while the other still computes
    gates.wait_for(3)
    gates.let_go(3)
    assert set(collector.wait(4)) == {0, 1, 2, 3}
    assert fake.batches == [1, 1, 2]
    loop.stop()


def test_stopping_answers_what_workers_compute(fake: FakeBase, collector: Collector) -> None:
    fake.before_run = gates = Gates()
    loop = EngineLoop(Engine({"base": loaded(fake)}), batcher(fake), collector, num_workers=2)
    loop.start()
    for number in range(2):
        loop.submit([item(number)])
        gates.wait_for(number + 1)
    threading.Timer(0.1, gates.let_go, [2]).start()
    loop.stop()
    assert all(event.error is None for event in collector.wait(2).values())


def test_a_defect_in_a_worker_is_told(
    fake: FakeBase, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, failed = Engine({"base": loaded(fake)}), threading.Event()

    def step(plan: Plan) -> list[Event]:
        raise RuntimeError("defect")

    monkeypatch.setattr(engine, "step", step)
    loop = EngineLoop(engine, batcher(fake), collector, num_workers=2, on_failure=failed.set)
    loop.start()
    loop.submit([item(0)])
    assert failed.wait(10)
    loop.stop()


def test_a_defect_of_the_loop_is_told(fake: FakeBase) -> None:
    failed = threading.Event()

    def deliver(events: list[Event]) -> None:
        raise RuntimeError("defect")

    loop = EngineLoop(Engine({"base": loaded(fake)}), batcher(fake), deliver, on_failure=failed.set)
    loop.start()
    loop.submit([item(0)])
    assert failed.wait(10)
    loop.stop()
