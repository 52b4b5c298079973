"""The server's surroundings over a real socket: statuses, the service token, health."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from hmi.executor.v1 import executor_pb2 as pb
from hmi.executor.v1 import executor_pb2_grpc
from services.common.config import ServiceSettings
from services.common.errors import (
    HmiError,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    from_rpc_error,
)
from services.common.interceptor import RequestInterceptor, ServiceTokenInterceptor
from services.common.knowledge import open_channel
from services.common.server import serve

NAME = "hmi.executor.v1.ExecutorService"
TOKEN = "secret"


class Raising(executor_pb2_grpc.ExecutorServiceServicer):
    """Raises what it is given: at once, or after one message."""

    def __init__(self, error: BaseException | None, after_first: bool = False) -> None:
        self.error = error
        self.after_first = after_first

    async def WatchStatus(self, request: pb.WatchStatusRequest, context: Any) -> Any:
        if self.after_first or self.error is None:
            yield pb.WatchStatusResponse(executor_id="e")
        if self.error is not None:
            raise self.error


@asynccontextmanager
async def stub(servicer: Raising, token: str = TOKEN) -> AsyncIterator[Any]:
    def add(server: grpc.aio.Server) -> None:
        executor_pb2_grpc.add_ExecutorServiceServicer_to_server(servicer, server)

    interceptors = [RequestInterceptor("test"), ServiceTokenInterceptor(TOKEN)]
    settings = ServiceSettings(drain_s=0)
    async with (
        serve(settings, adders={NAME: add}, interceptors=interceptors) as running,
        open_channel(f"127.0.0.1:{running.port}", token) as channel,
    ):
        yield executor_pb2_grpc.ExecutorServiceStub(channel)


async def call(servicer: Raising, token: str = TOKEN) -> list[pb.WatchStatusResponse]:
    async with stub(servicer, token) as client:
        return [response async for response in client.WatchStatus(pb.WatchStatusRequest())]


@pytest.mark.parametrize("after_first", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("inputs[2].text", "must not be empty"),
        ResourceExhausted("slow down", subject="tenant:a/tokens", retry_after_s=1.5),
        Unavailable("later", retry_after_s=0.25),
    ],
)
async def test_an_error_arrives_with_its_status_and_details(
    error: HmiError, after_first: bool
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(Raising(error, after_first))
    assert caught.value.code() == error.code
    again = from_rpc_error(caught.value)
    assert type(again) is type(error)
    assert again.to_status() == error.to_status()


@pytest.mark.parametrize("letter", ["x", "é", "€", "\U0001f600"])
async def test_an_error_with_a_long_text_keeps_its_status(letter: str) -> None:
    text = letter * 20_000
    for error in (InvalidArgument(text, text), ResourceExhausted(text, subject=text)):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(Raising(error))
        assert caught.value.code() == error.code
        again = from_rpc_error(caught.value)
        assert again.reason == error.reason
        assert again.message.startswith(letter)
        assert len(again.message.encode()) < 1100


async def test_an_unexpected_error_says_nothing_of_its_text() -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(Raising(ValueError("password is hunter2")))
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    assert "hunter2" not in (caught.value.details() or "")


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_without_the_service_token_the_answer_is_unauthenticated(token: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(Raising(None), token)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    status.details[0].Unpack(info)
    assert info.reason == "NO_SERVICE_TOKEN"


async def test_with_the_service_token_the_call_goes_through() -> None:
    assert [response.executor_id for response in await call(Raising(None))] == ["e"]


async def test_health_is_open_and_names_each_service() -> None:
    settings = ServiceSettings(drain_s=0)
    interceptors = [RequestInterceptor("test"), ServiceTokenInterceptor(TOKEN)]
    async with (
        serve(settings, adders={NAME: lambda _: None}, interceptors=interceptors) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        serving = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
        await running.set_serving(False)
        stopping = await health.Check(health_pb2.HealthCheckRequest(service=NAME))
    status = health_pb2.HealthCheckResponse.ServingStatus
    assert (serving.status, stopping.status) == (status.SERVING, status.NOT_SERVING)


async def test_plaintext_off_loopback_is_refused_unless_allowed() -> None:
    with pytest.raises(OSError, match="TLS"):
        async with serve(ServiceSettings(host="0.0.0.0"), adders={}, interceptors=[]):
            pass


async def test_a_taken_port_is_refused() -> None:
    async with serve(ServiceSettings(drain_s=0), adders={}, interceptors=[]) as running:
        with pytest.raises(OSError, match="cannot serve"):
            async with serve(ServiceSettings(port=running.port), adders={}, interceptors=[]):
                pass


def test_an_empty_service_token_is_refused() -> None:
    with pytest.raises(ValueError, match="HMI_SERVICE_TOKEN"):
        ServiceTokenInterceptor("")
