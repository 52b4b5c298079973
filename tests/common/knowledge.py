"""A knowledge store that tells its watchers and members what a test wants them to hear."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.knowledge.v1 import knowledge_pb2_grpc
from services.common.config import ServiceSettings
from services.common.errors import NotFound, Unavailable
from services.common.interceptor import RequestInterceptor
from services.common.server import serve

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

SERVICE = "hmi.knowledge.v1.KnowledgeService"


class FakeStore(knowledge_pb2_grpc.KnowledgeServiceServicer):
    """Records who asks.

    Attributes:
        streams: What each Watch in turn sends; None in it is silence, the end of it UNAVAILABLE.
        calls: The names of the calls about leases, in order.
        lost: Renewals answered NOT_FOUND from now on.
        is_silent: Renewals are not answered.
    """

    def __init__(self) -> None:
        self.streams: list[list[pb.WatchResponse | None]] = []
        self.from_revisions: list[int] = []
        self.calls: list[str] = []
        self.member = pb.Member()
        self.held_blobs: list[str] = []
        self.lost = 0
        self.is_silent = False

    async def Watch(
        self, request: pb.WatchRequest, context: Any
    ) -> AsyncIterator[pb.WatchResponse]:
        self.from_revisions.append(request.from_revision)
        for response in self.streams.pop(0) if self.streams else [None]:
            if response is None:
                await asyncio.Event().wait()
            else:
                yield response
        raise Unavailable("the stream ends")

    async def Register(self, request: pb.RegisterRequest, context: Any) -> Any:
        self.calls.append("register")
        self.member = request.member
        return pb.RegisterResponse(lease_ms=90)

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Any) -> Any:
        self.calls.append("renew")
        self.held_blobs = list(request.held_blobs)
        if self.is_silent:
            await asyncio.Event().wait()
        if self.lost:
            self.lost -= 1
            raise NotFound("the lease ended")
        return pb.RenewLeaseResponse(lease_ms=90)

    async def Unregister(self, request: pb.UnregisterRequest, context: Any) -> Any:
        self.calls.append("unregister")
        return pb.UnregisterResponse()


@asynccontextmanager
async def serving(store: FakeStore) -> AsyncIterator[KnowledgeServiceAsyncStub]:
    """The store behind a socket."""

    def add(server: grpc.aio.Server) -> None:
        knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server(store, server)

    async with (
        serve(
            ServiceSettings(drain_s=0),
            adders={SERVICE: add},
            interceptors=[RequestInterceptor("test")],
        ) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        yield knowledge_pb2_grpc.KnowledgeServiceStub(channel)
