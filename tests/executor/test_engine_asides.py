"""Other work on the engine's thread: all of it when it is quiet, a tenth of the time if not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import numpy as np
import pytest

from services.executor.engine.asides import SHARE
from services.executor.engine.batching import Batcher, Limits
from services.executor.engine.engine import Engine
from services.executor.engine.items import Event, Item
from services.executor.engine.loop import EngineLoop
from tests.executor.fake_base import FakeBase, key, loaded

STEP_S = 0.002
PIECE_S = 0.004


class Busy:
    """A loop over a fake base whose every batch takes `STEP_S` and is followed by another."""

    def __init__(self) -> None:
        self.fake = FakeBase()
        self.fake.resident.add(key("m"))
        bases = {"base": loaded(self.fake)}
        self.num_answers = 0
        self.is_busy = False
        self.loop = EngineLoop(Engine(bases), Batcher(bases, Limits(64, 8)), self._deliver)

    def _deliver(self, events: list[Event]) -> None:
        self.num_answers += len(events)
        if self.is_busy:
            self.ask()

    def ask(self) -> None:
        self.loop.submit([Item(self.num_answers, key("m"), np.ones(4, np.int64))])


@pytest.fixture
def busy() -> Iterator[Busy]:
    busy = Busy()
    busy.loop.start()
    yield busy
    busy.is_busy = False
    busy.loop.stop()


def test_an_idle_engine_runs_what_comes_at_once(busy: Busy) -> None:
    threads = [busy.loop.run_aside(threading.current_thread).result(10) for _ in range(50)]
    assert {thread.name for thread in threads} == {"engine"}


def test_batches_keep_most_of_the_time_and_other_work_gets_some(busy: Busy) -> None:
    busy.fake.before_run = lambda: time.sleep(STEP_S)
    busy.is_busy = True
    busy.ask()
    started = time.monotonic()
    took = 0.0
    for _ in range(8):
        begun = time.monotonic()
        busy.loop.run_aside(lambda: time.sleep(PIECE_S)).result(10)
        took += PIECE_S if time.monotonic() > begun else 0
    share = took / (time.monotonic() - started)
    assert share < 1.5 * SHARE
    assert busy.num_answers > 20


def test_a_client_that_asks_again_and_again_is_seldom_disturbed(busy: Busy) -> None:
    answered = threading.Event()
    busy.loop._deliver = lambda _events: answered.set()
    stop = threading.Event()
    num_pieces = 0

    def work() -> None:
        nonlocal num_pieces
        while not stop.is_set():
            busy.loop.run_aside(lambda: time.sleep(PIECE_S)).result(10)
            num_pieces += 1

    worker = threading.Thread(target=work)
    worker.start()
    started = time.monotonic()
    for _ in range(100):
        answered.clear()
        busy.ask()
        assert answered.wait(10)
        time.sleep(0.001)  # the engine has nothing to do meanwhile
    took = time.monotonic() - started
    num_disturbing = num_pieces
    stop.set()
    worker.join(10)
    assert num_disturbing * PIECE_S < 1.5 * SHARE * took + PIECE_S


def test_an_error_is_the_callers(busy: Busy) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        busy.loop.run_aside(fail).result(10)
    busy.loop.run_aside(lambda: None).result(10)


def test_what_nobody_waits_for_is_not_run_and_what_waits_at_the_end_is_cancelled() -> None:
    busy = Busy()
    ran = []
    unwanted = busy.loop.run_aside(lambda: ran.append(1))
    assert unwanted.cancel()
    busy.loop.start()
    begun, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        assert go_on.wait(10)

    held = busy.loop.run_aside(hold)
    assert begun.wait(10)
    waiting = busy.loop.run_aside(lambda: ran.append(2))
    stopping = threading.Thread(target=busy.loop.stop)
    stopping.start()
    time.sleep(0.05)
    go_on.set()
    stopping.join(10)
    held.result(0)
    with pytest.raises(CancelledError):
        waiting.result(0)
    assert not ran
