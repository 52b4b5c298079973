"""A request's id goes with the calls that are made to serve it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.knowledge.v1 import knowledge_pb2_grpc
from services.common.config import ServiceSettings
from services.common.interceptor import RequestInterceptor, ServiceTokenInterceptor, request_id
from services.common.knowledge import open_channel
from services.common.logs import request_id_var
from services.common.server import serve
from tests.common.knowledge import SERVICE

TOKEN = "token-of-the-services"


class Store(knowledge_pb2_grpc.KnowledgeServiceServicer):
    """Notes the id that its log lines would name."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.RegisterResponse:
        self.ids.append(request_id())
        return pb.RegisterResponse()

    async def Watch(
        self, request: pb.WatchRequest, context: Any
    ) -> AsyncIterator[pb.WatchResponse]:
        self.ids.append(request_id())
        yield pb.WatchResponse()


async def ids_at_the_store() -> list[str]:
    """Of a unary call and of one with a stream of answers."""
    store = Store()
    async with (
        serve(
            ServiceSettings(drain_s=0),
            adders={
                SERVICE: lambda server: knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server(
                    store, server
                )
            },
            interceptors=[RequestInterceptor("test"), ServiceTokenInterceptor(TOKEN)],
        ) as running,
        open_channel(f"127.0.0.1:{running.port}", TOKEN) as channel,
    ):
        stub = knowledge_pb2_grpc.KnowledgeServiceStub(channel)
        await stub.Register(pb.RegisterRequest())
        async for _ in stub.Watch(pb.WatchRequest()):
            pass
    return store.ids


async def test_the_store_names_the_request_that_it_helps_to_serve() -> None:
    token = request_id_var.set("r-1")
    try:
        assert await ids_at_the_store() == ["r-1", "r-1"]
    finally:
        request_id_var.reset(token)


async def test_calls_outside_a_request_have_ids_of_their_own() -> None:
    token = request_id_var.set("")
    try:
        first, second = await ids_at_the_store()
    finally:
        request_id_var.reset(token)
    assert first
    assert second not in ("", first)
