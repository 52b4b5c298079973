"""Counts on their way to the store: once each, through its absences, and to the very end."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter as Exact
from collections.abc import Mapping, Sequence

import grpc
import numpy as np
import pytest

from hmi.knowledge.v1 import domain_pb2
from services.common import ngrams
from services.executor.observe import Counter, Shipper, shipping
from services.executor.observe.counter import Counts, Group
from tests.executor.scripted_store import scripted_store
from tests.executor.test_observe import exact_counts, part


@pytest.fixture
def counter() -> Counter:
    return Counter()


async def test_counts_are_shipped_with_totals_and_results(counter: Counter) -> None:
    counter.observe(part([("news/sport", "acme", [1, 2, 1, 2])], [3, 2, 1, 0]))
    async with scripted_store() as (store, stub):
        running = asyncio.create_task(Shipper(counter, stub, "executor-1", interval_s=0.05).run())
        await store.wait_for(lambda: store.observed)
        running.cancel()
    [request] = store.observed
    [counts] = request.counts
    assert (request.executor_id, request.sequence) == ("executor-1", 1)
    assert request.epoch > 0
    assert (counts.base, counts.path, counts.tenant) == ("hminilm", "news/sport", "acme")
    assert counts.num_tokens == counts.lookups.num_tokens == 4
    looked_up = counts.lookups
    assert looked_up.num_trigram == looked_up.num_bigram == 1
    assert looked_up.num_unigram == looked_up.num_computed == 1
    assert summed([request]) == exact_counts([[1, 2, 1, 2]])


def summed(requests: Sequence[domain_pb2.ObserveRequest]) -> Mapping[tuple[int, ...], int]:
    total: Exact[tuple[int, ...]] = Exact()
    for request in requests:
        for counts in request.counts:
            slots = ngrams.unpack(np.array(counts.keys, np.int64)).tolist()
            for key, number in zip(slots, counts.counts, strict=True):
                total[tuple(key)] += number
    return total


async def test_a_message_is_sent_until_it_is_answered_under_one_number(counter: Counter) -> None:
    counter.observe(part([("", "acme", [1, 2, 3])]))
    async with scripted_store() as (store, stub):
        store.fail("Observe", grpc.StatusCode.UNAVAILABLE)
        store.fail("Observe", grpc.StatusCode.UNAVAILABLE, is_heard=True)
        running = asyncio.create_task(Shipper(counter, stub, "executor-1", interval_s=0.05).run())
        await store.wait_for(lambda: len(store.observed) == 2)
        counter.observe(part([("", "acme", [4])]))
        await store.wait_for(lambda: len(store.observed) == 3)
        running.cancel()
    first, again, second = store.observed
    assert first == again
    assert (first.sequence, second.sequence) == (1, 2)
    assert first.epoch == second.epoch
    assert summed([first]) == exact_counts([[1, 2, 3]])
    assert summed([second]) == exact_counts([[4]])


async def test_a_refused_message_does_not_hold_up_those_after_it(counter: Counter) -> None:
    counter.observe(part([("gone", "acme", [1])]))
    async with scripted_store() as (store, stub):
        store.fail("Observe", grpc.StatusCode.INVALID_ARGUMENT, is_heard=True)
        running = asyncio.create_task(Shipper(counter, stub, "executor-1", interval_s=0.05).run())
        await store.wait_for(lambda: store.observed)
        counter.observe(part([("", "acme", [2])]))
        await store.wait_for(lambda: len(store.observed) == 2)
        running.cancel()
    assert [request.sequence for request in store.observed] == [1, 2]


async def test_many_keys_go_in_several_messages(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.executor.observe.shipping.MESSAGE_KEYS", 40)
    texts = [list(range(start, start + 5)) for start in range(20)]  # 16 n-grams each
    counter.observe(part([("", f"tenant-{n}", ids) for n, ids in enumerate(texts)]))
    async with scripted_store() as (store, stub):
        running = asyncio.create_task(Shipper(counter, stub, "executor-1", interval_s=0.05).run())
        await store.wait_for(lambda: summed(store.observed) == exact_counts(texts))
        running.cancel()
    sizes = [sum(len(counts.keys) for counts in request.counts) for request in store.observed]
    assert sizes == [32] * 10
    tokens = sum(counts.num_tokens for request in store.observed for counts in request.counts)
    assert tokens == 100
    assert [request.sequence for request in store.observed] == list(range(1, len(sizes) + 1))


async def test_what_was_looked_up_last_is_shipped_at_the_end(counter: Counter) -> None:
    async with scripted_store() as (store, stub):
        async with Shipper(counter, stub, "executor-1", interval_s=60).held():
            counter.observe(part([("", "acme", [1, 2, 3])]))
        assert summed(store.observed) == exact_counts([[1, 2, 3]])
        assert [request.sequence for request in store.observed] == [1]


async def test_a_message_under_way_at_the_end_is_sent_again_under_its_number(
    counter: Counter,
) -> None:
    counter.observe(part([("", "acme", [1, 2, 3])]))
    async with scripted_store() as (store, stub):
        store.fail("Observe", *[grpc.StatusCode.UNAVAILABLE] * 2, is_heard=True)
        async with Shipper(counter, stub, "executor-1", interval_s=0.05).held():
            await store.wait_for(lambda: store.observed)
            counter.observe(part([("", "acme", [4])]))
    *repeated, last = store.observed
    assert len(repeated) > 1
    assert all(request == repeated[0] for request in repeated)
    assert [repeated[0].sequence, last.sequence] == [1, 2]
    assert summed([repeated[0], last]) == exact_counts([[1, 2, 3], [4]])


async def test_a_store_that_is_away_holds_no_end_up(counter: Counter) -> None:
    counter.observe(part([("", "acme", [1])]))
    async with scripted_store() as (store, stub):
        store.fail("Observe", *[grpc.StatusCode.UNAVAILABLE] * 1000)
        began = asyncio.get_running_loop().time()
        async with Shipper(counter, stub, "executor-1", interval_s=60, end_s=0.2).held():
            pass
        assert asyncio.get_running_loop().time() - began < 5
    assert not store.observed


async def test_counts_that_cannot_be_sent_do_not_hold_up_those_after_them(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter.observe(part([("", "acme", [1])]))
    async with scripted_store() as (store, stub):
        shipper = Shipper(counter, stub, "executor-1", interval_s=0.05)
        send, failures = shipper._send, [ValueError("a defect")]

        async def fail_once(request: domain_pb2.ObserveRequest) -> None:
            if failures:
                raise failures.pop()
            await send(request)

        monkeypatch.setattr(shipper, "_send", fail_once)
        async with shipper.held():
            while failures:  # noqa: ASYNC110  nothing tells of it
                await asyncio.sleep(0.01)
            counter.observe(part([("", "acme", [2])]))
            await store.wait_for(lambda: store.observed)
    # The block may end before the answer comes: then it is sent again, under its number.
    assert len({request.sequence for request in store.observed}) == 1
    assert summed(store.observed[:1]) == exact_counts([[2]])


async def test_messages_are_made_beside_the_event_loop(
    counter: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def seen(group: Group, counted: Counts) -> domain_pb2.TenantCounts:
        threads.append(threading.current_thread())
        return made(group, counted)

    made = shipping._to_pb
    monkeypatch.setattr(shipping, "_to_pb", seen)
    counter.observe(part([("news", "acme", [1, 2])]))
    async with (
        scripted_store() as (store, stub),
        Shipper(counter, stub, "executor-1", interval_s=0.05).held(),
    ):
        await store.wait_for(lambda: store.observed)
    assert threads
    assert threading.current_thread() not in threads
