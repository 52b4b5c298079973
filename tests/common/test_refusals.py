"""A caller that is refused while it still sends learns why (grpc/grpc#36066), a thousand times."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
import grpc.aio
import pytest

from hmi.executor.v1 import executor_pb2, executor_pb2_grpc
from hmi.knowledge.v1 import knowledge_pb2, knowledge_pb2_grpc
from services.common import drain as module
from services.common import interceptor
from services.common.config import ServiceSettings
from services.common.drain import drain
from services.common.ending import Ending, write_all
from services.common.errors import HmiError, InvalidArgument
from services.common.interceptor import RequestInterceptor, ServiceTokenInterceptor
from services.common.knowledge import Blobs, open_channel
from services.common.server import serve

TOKEN = "secret"
NUM_CALLS = 400
NUM_AT_ONCE = 20
MASK = "Internal error from Core"
REFUSED = "INVALID_ARGUMENT"


class Refusing(
    knowledge_pb2_grpc.KnowledgeServiceServicer, executor_pb2_grpc.ExecutorServiceServicer
):
    """Refuses streams, having read nothing or one message of them."""

    def __init__(self, num_read: int) -> None:
        self.num_read = num_read

    async def StatBlob(self, request: Any, context: Any) -> Any:
        return knowledge_pb2.StatBlobResponse()

    async def WriteBlob(self, requests: AsyncIterator[Any], context: Any) -> Any:
        await self._refuse(requests)

    async def Execute(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        await self._refuse(requests)
        yield

    async def _refuse(self, requests: AsyncIterator[Any]) -> None:
        for _ in range(self.num_read):
            await anext(aiter(requests))
        raise InvalidArgument("sha256", "no")


class Calls:
    """One call of each kind; raises what the caller would see."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.store: Any = knowledge_pb2_grpc.KnowledgeServiceStub(channel)
        self.executor: Any = executor_pb2_grpc.ExecutorServiceStub(channel)

    async def blob(self) -> None:
        await self.store.WriteBlob(_blob_requests(4, 60_000))

    async def execute(self) -> None:
        async for _ in self.executor.Execute(_hellos(16)):
            pass

    async def listened(self) -> None:
        call = self.executor.Execute()
        ending = Ending(call)
        writer = asyncio.create_task(write_all(call, _hellos(16)))
        try:
            while await call.read() is not grpc.aio.EOF:
                pass
        except grpc.aio.AioRpcError as error:
            raise await ending.meant(error) from None
        finally:
            await writer


async def _blob_requests(num: int, size_bytes: int) -> AsyncIterator[Any]:
    for _ in range(num):
        yield knowledge_pb2.WriteBlobRequest(data=bytes(size_bytes))


async def _hellos(num: int) -> AsyncIterator[Any]:
    hello = executor_pb2.Command(hello=executor_pb2.Hello(gateway_id="g"))
    for _ in range(num):
        yield executor_pb2.ExecuteRequest(commands=[hello])


@asynccontextmanager
async def refusing(num_read: int = 0, token: str = TOKEN) -> AsyncIterator[grpc.aio.Channel]:
    servicer = Refusing(num_read)
    adders = {
        "hmi.knowledge.v1.KnowledgeService": partial(
            knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server, servicer
        ),
        "hmi.executor.v1.ExecutorService": partial(
            executor_pb2_grpc.add_ExecutorServiceServicer_to_server, servicer
        ),
    }
    interceptors = [RequestInterceptor("test"), ServiceTokenInterceptor(TOKEN)]
    async with (
        serve(ServiceSettings(drain_s=0), adders=adders, interceptors=interceptors) as running,
        open_channel(f"127.0.0.1:{running.port}", token) as channel,
    ):
        yield channel


async def outcomes(
    call: Callable[[], Awaitable[object]], num_calls: int = NUM_CALLS
) -> Counter[str]:
    """What the calls end with: the status, or "masked"."""
    counts: Counter[str] = Counter()

    async def one() -> None:
        try:
            await call()
        except grpc.aio.AioRpcError as error:
            counts["masked" if error.details() == MASK else error.code().name] += 1
        except HmiError as error:
            counts[error.code.name] += 1

    for _ in range(num_calls // NUM_AT_ONCE):
        await asyncio.gather(*(one() for _ in range(NUM_AT_ONCE)))
    return counts


@pytest.fixture
def without_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server as it would be without reading on."""

    async def read_nothing(requests: object) -> None:
        return

    monkeypatch.setattr(interceptor, "drain", read_nothing)


@pytest.mark.parametrize("num_read", [0, 1])
async def test_any_caller_that_sends_little_gets_the_status(num_read: int) -> None:
    async with refusing(num_read) as channel:
        calls = Calls(channel)
        assert await outcomes(calls.blob) == {REFUSED: NUM_CALLS}
        assert await outcomes(calls.execute) == {REFUSED: NUM_CALLS}


async def test_a_caller_without_the_service_token_gets_the_status() -> None:
    async with refusing(token="wrong") as channel:
        calls = Calls(channel)
        assert await outcomes(calls.blob) == {"UNAUTHENTICATED": NUM_CALLS}
        assert await outcomes(calls.execute) == {"UNAUTHENTICATED": NUM_CALLS}


@pytest.mark.usefixtures("without_drain")
async def test_without_reading_on_the_status_would_be_lost() -> None:
    """If this fails, grpc.aio is mended: `drain` and `Ending` may go."""
    async with refusing() as channel:
        assert (await outcomes(Calls(channel).execute))["masked"] > 0


@pytest.mark.usefixtures("without_drain")
async def test_a_caller_that_listens_gets_the_status_however_much_it_sends() -> None:
    async with refusing() as channel:
        assert await outcomes(Calls(channel).listened) == {REFUSED: NUM_CALLS}
        blobs = Blobs(knowledge_pb2_grpc.KnowledgeServiceStub(channel))
        large = bytes(12 << 20)
        assert await outcomes(lambda: blobs.write(large), 40) == {REFUSED: 40}


async def _forever(num_read: list[int]) -> AsyncIterator[knowledge_pb2.WriteBlobRequest]:
    while True:
        num_read.append(1)
        await asyncio.sleep(0)
        yield knowledge_pb2.WriteBlobRequest(data=bytes(1 << 20))


async def test_a_caller_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    await drain(_forever(read))
    assert 8 <= len(read) <= 9
    monkeypatch.setattr(module, "MAX_S", 0.05)
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 60)
    async with asyncio.timeout(1):
        await drain(_forever(read))


async def test_while_the_server_stands_still_the_caller_is_not_quiet() -> None:
    read: list[int] = []

    async def late() -> AsyncIterator[knowledge_pb2.WriteBlobRequest]:
        asyncio.get_running_loop().call_soon(time.sleep, 3 * module.QUIET_S)
        await asyncio.sleep(2 * module.QUIET_S)  # it comes in the meantime
        read.append(1)
        yield knowledge_pb2.WriteBlobRequest()

    await drain(late())
    assert read == [1]


async def test_a_caller_that_pauses_is_answered_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_S", 60.0)
    async with refusing() as channel:
        call = Calls(channel).executor.Execute()
        begun = asyncio.get_running_loop().time()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code().name == REFUSED
        assert asyncio.get_running_loop().time() - begun < 20


async def test_what_cannot_be_read_hides_no_answer() -> None:
    async def broken() -> AsyncIterator[knowledge_pb2.WriteBlobRequest]:
        raise RuntimeError("already running")
        yield

    await drain(broken())
