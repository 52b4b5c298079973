"""A knowledge store that says what a test tells it to, on a real socket: blobs, counts and work."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from hmi.knowledge.v1 import domain_pb2, knowledge_pb2
from hmi.knowledge.v1.knowledge_pb2_grpc import (
    KnowledgeServiceServicer,
    KnowledgeServiceStub,
    add_KnowledgeServiceServicer_to_server,
)

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub


class ScriptedStore(KnowledgeServiceServicer):
    """Keeps blobs in memory, hands out the work it is given, and fails as told.

    Attributes:
        failures: Codes by RPC; each call of an RPC takes its first, if any, and fails with it.
        lost_answers: As `failures`, but the call is heard first.
        work: Work to hand out; a lease takes it, a lapse is the test's to script.
        leases: Tokens that renew, by work.
    """

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.failures: dict[str, deque[grpc.StatusCode]] = {}
        self.lost_answers: dict[str, deque[grpc.StatusCode]] = {}
        self.observed: list[domain_pb2.ObserveRequest] = []
        self.work: deque[domain_pb2.Work] = deque()
        self.leases: dict[str, domain_pb2.Work] = {}
        self.renewals: list[str] = []
        self.completed: list[domain_pb2.CompleteWorkRequest] = []
        self.changed = asyncio.Condition()

    def fail(self, rpc: str, *codes: grpc.StatusCode, is_heard: bool = False) -> None:
        """Let the next calls of an RPC fail, after they were heard or before."""
        scripts = self.lost_answers if is_heard else self.failures
        scripts.setdefault(rpc, deque()).extend(codes)

    async def wait_for(self, is_so: Any) -> None:
        """Wait until calls have made it so."""
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(is_so)

    async def Observe(
        self, request: domain_pb2.ObserveRequest, context: Any
    ) -> domain_pb2.ObserveResponse:
        await self._follow(self.failures, "Observe", context)
        async with self.changed:
            self.observed.append(request)
            self.changed.notify_all()
        await self._follow(self.lost_answers, "Observe", context)
        return domain_pb2.ObserveResponse()

    async def LeaseWork(
        self, request: domain_pb2.LeaseWorkRequest, context: Any
    ) -> domain_pb2.LeaseWorkResponse:
        await self._follow(self.failures, "LeaseWork", context)
        if request.work_id:
            self.renewals.append(request.work_id)
            held = self.leases.get(request.work_id)
            return domain_pb2.LeaseWorkResponse(work=held)
        if not self.work:
            return domain_pb2.LeaseWorkResponse()
        work = self.work.popleft()
        self.leases[work.work_id] = work
        return domain_pb2.LeaseWorkResponse(work=work)

    async def CompleteWork(
        self, request: domain_pb2.CompleteWorkRequest, context: Any
    ) -> domain_pb2.CompleteWorkResponse:
        await self._follow(self.failures, "CompleteWork", context)
        async with self.changed:
            self.completed.append(request)
            self.changed.notify_all()
        await self._follow(self.lost_answers, "CompleteWork", context)
        return domain_pb2.CompleteWorkResponse(is_committed=True)

    async def StatBlob(
        self, request: knowledge_pb2.StatBlobRequest, context: Any
    ) -> knowledge_pb2.StatBlobResponse:
        data = self.blobs.get(request.sha256)
        if data is None:
            return knowledge_pb2.StatBlobResponse()
        return knowledge_pb2.StatBlobResponse(committed_bytes=len(data), is_complete=True)

    async def WriteBlob(
        self, requests: AsyncIterator[knowledge_pb2.WriteBlobRequest], context: Any
    ) -> knowledge_pb2.WriteBlobResponse:
        await self._follow(self.failures, "WriteBlob", context)
        data, sha256 = b"", ""
        async for request in requests:
            sha256 = sha256 or request.sha256
            data += request.data
        self.put(data)
        assert sha256 in self.blobs
        return knowledge_pb2.WriteBlobResponse(committed_bytes=len(data))

    async def ReadBlob(
        self, request: knowledge_pb2.ReadBlobRequest, context: Any
    ) -> AsyncIterator[knowledge_pb2.ReadBlobResponse]:
        data = self.blobs.get(request.sha256)
        if data is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such blob")
        else:
            yield knowledge_pb2.ReadBlobResponse(size_bytes=len(data), data=data)

    def put(self, data: bytes) -> str:
        """Keep a blob; its sha256."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.blobs[sha256] = data
        return sha256

    async def _follow(
        self, scripts: dict[str, deque[grpc.StatusCode]], rpc: str, context: Any
    ) -> None:
        if scripts.get(rpc):
            await context.abort(scripts[rpc].popleft(), "as told")


@asynccontextmanager
async def scripted_store() -> AsyncIterator[tuple[ScriptedStore, KnowledgeServiceAsyncStub]]:
    """A scripted store and a stub to it."""
    server = grpc.aio.server()
    store = ScriptedStore()  # type: ignore[abstract]  # what it lacks is answered UNIMPLEMENTED
    add_KnowledgeServiceServicer_to_server(store, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: KnowledgeServiceAsyncStub = KnowledgeServiceStub(channel)
        yield store, stub
    await server.stop(None)
