"""The Execute stream over a real server and a fake base: credit, errors, cancellation, stopping."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc import code_pb2

from hmi.executor.v1 import executor_pb2 as pb
from hmi.executor.v1.executor_pb2_grpc import (
    ExecutorServiceStub,
    add_ExecutorServiceServicer_to_server,
)
from services.common.config import ServiceSettings
from services.common.errors import ResourceExhausted
from services.common.interceptor import RequestInterceptor, ServiceTokenInterceptor
from services.common.knowledge import open_channel
from services.common.server import serve
from services.executor.engine.batching import Limits
from services.executor.service import Executor, Options
from tests.executor.fake_base import FakeBase, key, loaded
from tests.executor.gateway import TOKEN, Gateway


def submit(item_id: int, name: str = "m", length: int = 4, **kwargs: Any) -> pb.Submit:
    model = key(name)
    submit = pb.Submit(
        item_id=item_id,
        key=pb.ModelKey(
            tenant=model.tenant,
            model=model.model,
            version=model.version,
            digest=model.digest,
            base_digest=str(kwargs.pop("base", model.base_digest)),
        ),
        tokenizer_digest="tokenizer",
        token_ids=range(1, length + 1),
    )
    for field, value in kwargs.items():
        if field == "token_ids":
            del submit.token_ids[:]
            submit.token_ids.extend(value)
        else:
            setattr(submit, field, value)
    return submit


@pytest.fixture
def fake() -> FakeBase:
    fake = FakeBase()
    fake.resident.add(key("m"))
    return fake


@asynccontextmanager
async def serving(
    *fakes: FakeBase, max_tokens: int = 256, drain_s: float = 2.0
) -> AsyncIterator[tuple[Executor, grpc.aio.Channel]]:
    settings = ServiceSettings(drain_s=1.0)
    options = Options("executor-1", Limits(max_tokens, 8), credit_batches=4.0, drain_s=drain_s)
    executor = Executor(options)
    for fake in fakes:
        executor.add(loaded(fake))
    adders = {
        "hmi.executor.v1.ExecutorService": lambda server: add_ExecutorServiceServicer_to_server(
            executor.servicer, server
        )
    }
    interceptors = [RequestInterceptor("executor"), ServiceTokenInterceptor(TOKEN)]
    async with (
        serve(settings, adders=adders, interceptors=interceptors) as server,
        open_channel(f"127.0.0.1:{server.port}", TOKEN) as channel,
        executor,
    ):
        yield executor, channel


@pytest.fixture
async def server(fake: FakeBase) -> AsyncIterator[tuple[Executor, grpc.aio.Channel]]:
    async with serving(fake) as started:
        yield started


@pytest.fixture
async def gateway(server: tuple[Executor, grpc.aio.Channel]) -> AsyncIterator[Gateway]:
    gateway = Gateway(server[1])
    await gateway.hello()
    yield gateway
    gateway.call.cancel()


def codes(events: Sequence[pb.Event]) -> list[int]:
    assert all(event.is_final and event.sequence == 0 for event in events)
    return [event.error.code for event in events]


async def test_items_of_one_message_are_each_answered_once(gateway: Gateway) -> None:
    await gateway.submit(*(submit(n, length=n) for n in range(1, 21)))
    events = await gateway.answers(*range(1, 21))
    for n, event in enumerate(events, 1):
        assert list(event.output.shape) == [3]
        values = np.frombuffer(event.output.data, "<f4")
        np.testing.assert_array_equal(values, [n * (n + 1) / 2, 0, 1])
    await gateway.call.done_writing()
    while await gateway.read():
        pass
    assert await gateway.call.code() == grpc.StatusCode.OK
    assert all(len(events) == 1 for events in gateway.events.values())


async def test_a_text_pair_has_two_segments(gateway: Gateway) -> None:
    await gateway.submit(submit(1, length=5, num_first_segment_tokens=2))
    [event] = await gateway.answers(1)
    np.testing.assert_array_equal(np.frombuffer(event.output.data, "<f4"), [15, 3, 1])


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"base": "unknown"}, code_pb2.FAILED_PRECONDITION),
        ({"tokenizer_digest": "another"}, code_pb2.FAILED_PRECONDITION),
        ({"token_ids": []}, code_pb2.INVALID_ARGUMENT),
        ({"token_ids": [1] * 513}, code_pb2.INVALID_ARGUMENT),
        ({"token_ids": [1000]}, code_pb2.INVALID_ARGUMENT),
        ({"num_first_segment_tokens": 5}, code_pb2.INVALID_ARGUMENT),
    ],
)
async def test_a_wrong_item_is_refused_alone(
    gateway: Gateway, wrong: dict[str, Any], code: int
) -> None:
    credit = gateway.credit
    await gateway.submit(submit(1, **wrong), submit(2))
    assert codes(await gateway.answers(1, 2)) == [code, 0]
    assert gateway.credit - credit <= 517


async def test_answers_together_larger_than_a_message_come_in_several(
    gateway: Gateway, fake: FakeBase
) -> None:
    fake.num_more = 3 << 18  # 3 MiB each
    await gateway.submit(*(submit(n) for n in range(8)))
    events = await gateway.answers(*range(8))
    assert {len(event.output.data) for event in events} == {(3 << 20) + 12}
    assert gateway.largest < 5 << 20


async def test_an_answer_larger_than_any_message_is_its_items_error(
    gateway: Gateway, fake: FakeBase
) -> None:
    fake.num_more = 17 << 18
    await gateway.submit(submit(1))
    assert codes(await gateway.answers(1)) == [code_pb2.INVALID_ARGUMENT]
    fake.num_more = 0
    await gateway.submit(submit(2))
    assert codes(await gateway.answers(2)) == [0]


async def test_no_hello_ends_the_stream(server: tuple[Executor, grpc.aio.Channel]) -> None:
    gateway = Gateway(server[1])
    await gateway.submit(submit(1))
    assert not await gateway.read()
    assert await gateway.call.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_credit_is_spent_and_comes_back(gateway: Gateway) -> None:
    assert gateway.credit == 4 * 256
    await gateway.submit(submit(1, length=100))
    await gateway.answers(1)
    while gateway.credit < 4 * 256 + 100:
        await gateway.read()
    assert gateway.credit == 4 * 256 + 100


async def test_a_submit_beyond_the_credit_ends_the_stream(gateway: Gateway, fake: FakeBase) -> None:
    go_on = threading.Event()

    def hold() -> None:
        assert go_on.wait(10)

    fake.before_run = hold
    await gateway.submit(submit(1, length=512), submit(2, length=512), submit(3, length=1))
    go_on.set()
    while await gateway.read():
        pass
    assert await gateway.call.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_gateways_share_the_credit_but_any_item_fits(
    server: tuple[Executor, grpc.aio.Channel], gateway: Gateway
) -> None:
    second, third = Gateway(server[1], "second"), Gateway(server[1], "third")
    await second.hello()
    await third.hello()
    assert (second.credit, third.credit) == (512, 512)
    second.call.cancel()
    third.call.cancel()


async def test_a_cold_item_waits_alone_and_holds_no_credit(
    server: tuple[Executor, grpc.aio.Channel], gateway: Gateway, fake: FakeBase
) -> None:
    await gateway.submit(submit(1, "cold", length=500))
    await gateway.submit(submit(2))
    await gateway.answers(2)
    assert gateway.credit >= 4 * 256 + 500
    assert 1 not in gateway.events
    fake.resident.add(key("cold"))
    server[0].dispatcher.wake()
    assert codes(await gateway.answers(1)) == [0]


async def test_an_adapter_that_cannot_be_loaded_is_its_items_error(
    gateway: Gateway, fake: FakeBase
) -> None:
    fake.broken[key("huge")] = ResourceExhausted("too large")
    await gateway.submit(submit(1, "huge"), submit(2))
    assert codes(await gateway.answers(1, 2)) == [code_pb2.RESOURCE_EXHAUSTED, 0]


async def test_a_hint_prefetches(gateway: Gateway, fake: FakeBase) -> None:
    await gateway.send(pb.Command(hint=pb.Hint(key=submit(0, "soon").key)))
    await gateway.submit(submit(1))
    await gateway.answers(1)
    assert fake.prefetched == [key("soon")]


async def test_cancelled_and_late_items_end(gateway: Gateway) -> None:
    await gateway.submit(submit(1, "cold"), submit(2, "cold", timeout_ms=50))
    await gateway.send(
        pb.Command(submit=submit(3, "cold")),
        pb.Command(cancel=pb.Cancel(item_id=3)),
        pb.Command(cancel=pb.Cancel(item_id=1)),
        pb.Command(cancel=pb.Cancel(item_id=99)),
    )
    assert codes(await gateway.answers(1, 2, 3)) == [
        code_pb2.CANCELLED,
        code_pb2.DEADLINE_EXCEEDED,
        code_pb2.CANCELLED,
    ]


async def test_an_item_id_in_use_ends_the_stream(gateway: Gateway) -> None:
    await gateway.submit(submit(1, "cold"), submit(1, "cold"))
    while await gateway.read():
        pass
    assert await gateway.call.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_the_end_of_a_stream_cancels_its_items(
    server: tuple[Executor, grpc.aio.Channel], gateway: Gateway
) -> None:
    await gateway.submit(submit(1, "cold"), submit(2))
    await gateway.answers(2)
    assert server[0].dispatcher.num_tokens == 4
    gateway.call.cancel()
    await server[0].dispatcher.drain(timeout_s=10)
    assert server[0].dispatcher.num_tokens == 0


async def test_status_tells_load_and_residency_as_they_change(
    server: tuple[Executor, grpc.aio.Channel], gateway: Gateway, fake: FakeBase
) -> None:
    call = ExecutorServiceStub(server[1]).WatchStatus(pb.WatchStatusRequest())
    states = aiter(call)
    first = await anext(states)
    assert first == pb.WatchStatusResponse(
        executor_id="executor-1", base_digests=["base"], loaded_digests=["digest-m"]
    )
    fake.resident = {key("n")}
    second = await anext(states)
    assert list(second.loaded_digests) == ["digest-n"]
    assert list(second.evicted_digests) == ["digest-m"]
    await gateway.submit(submit(1, "cold", length=7))
    assert (await anext(states)).num_queued_tokens == 7
    call.cancel()


async def test_stopping_answers_what_is_here_and_refuses_what_is_new(fake: FakeBase) -> None:
    started, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        assert go_on.wait(10)

    fake.before_run = hold
    async with serving(fake) as (executor, channel):
        gateway = Gateway(channel)
        await gateway.hello()
        await gateway.submit(submit(1))
        await asyncio.to_thread(started.wait, 10)
        stopping = asyncio.create_task(executor.stop())
        await asyncio.sleep(0.05)
        await gateway.submit(submit(2))
        await gateway.answers(2)
        go_on.set()
        assert codes(await gateway.answers(1, 2)) == [0, code_pb2.UNAVAILABLE]
        await stopping
        while await gateway.read():
            pass
        assert await gateway.call.code() == grpc.StatusCode.UNAVAILABLE
        late = Gateway(channel)
        assert not await late.read()
        assert await late.call.code() == grpc.StatusCode.UNAVAILABLE


async def test_stopping_ends_what_stays_cold(fake: FakeBase) -> None:
    async with serving(fake, drain_s=0.1) as (executor, channel):
        gateway = Gateway(channel)
        await gateway.hello()
        await gateway.submit(submit(1, "cold"), submit(2))
        await gateway.answers(2)
        await executor.stop()
        assert codes(await gateway.answers(1)) == [code_pb2.UNAVAILABLE]
