"""Who is refused while sending learns why, even from a server that does not wait (grpc#36066)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest

from hmi.admin.v1 import model_pb2, model_pb2_grpc
from hmi.client import AsyncClient, Item, Push
from hmi.errors import HmiError
from hmi.inference.v1 import inference_pb2_grpc
from services.common import errors as service_errors
from services.common import interceptor
from services.common.interceptor import RequestInterceptor
from tests.client.conftest import Serve

NUM_CALLS = 100
BLOB = bytes(4 << 20)


class _Refusing(model_pb2_grpc.ModelServiceServicer, inference_pb2_grpc.InferenceServiceServicer):
    """Refuses every stream, unread."""

    async def GetUpload(self, request: Any, context: Any) -> model_pb2.GetUploadResponse:
        return model_pb2.GetUploadResponse()

    async def UploadVersion(self, requests: Any, context: Any) -> Any:
        raise service_errors.PermissionDenied("no")

    async def UploadVersions(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        raise service_errors.PermissionDenied("no")
        yield

    async def StreamPredict(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        raise service_errors.PermissionDenied("no")
        yield


@pytest.fixture
async def client(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> AsyncClient:
    async def read_nothing(requests: object) -> None:
        return

    monkeypatch.setattr(interceptor, "drain", read_nothing)
    refusing = _Refusing()

    def add(server: grpc.aio.Server) -> None:
        model_pb2_grpc.add_ModelServiceServicer_to_server(refusing, server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(refusing, server)

    return await serve(add, [RequestInterceptor("test")])


async def refusals(call: Callable[[], Awaitable[object]]) -> Counter[str]:
    """What the calls raise, twenty at a time."""
    counts: Counter[str] = Counter()

    async def one() -> None:
        try:
            await call()
        except HmiError as error:
            counts[type(error).__name__] += 1

    for _ in range(NUM_CALLS // 20):
        await asyncio.gather(*(one() for _ in range(20)))
    return counts


async def test_a_refused_upload_says_why(client: AsyncClient) -> None:
    assert await refusals(lambda: client.push_version("m", BLOB)) == {"PermissionDenied": NUM_CALLS}


async def test_a_refused_bulk_upload_says_why(client: AsyncClient) -> None:
    pushes = [Push("m", bytes(1000)) for _ in range(16)]
    assert await refusals(lambda: client.push_versions(pushes)) == {"PermissionDenied": NUM_CALLS}


async def test_a_refused_stream_says_why(client: AsyncClient) -> None:
    async def stream() -> None:
        async for _ in client.stream([Item("m", "x")] * 64):
            pass

    assert await refusals(stream) == {"PermissionDenied": NUM_CALLS}
