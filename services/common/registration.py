"""Keeps a process known to the knowledge store, and the blobs it uses from being collected.

Knows leases; does not know what the process does. While the store is away nothing here fails: the
lease is renewed, or begun anew, once it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

RETRY_S = 0.25
# A renewal that hangs must end while the lease still lives.
ANSWER_S = 2.0
_LEAVE_S = 1.0


class Registration:
    """This process as a member.

    Args:
        stub: The store.
        member_id: Unique among members.
        kind: What this process is.
        base_digests: The bases served now; a gateway serves none.
        held_blobs: The blobs in use now.
    """

    def __init__(
        self,
        stub: KnowledgeServiceAsyncStub,
        *,
        member_id: str,
        kind: pb.MemberKind.ValueType,
        base_digests: Callable[[], Iterable[str]] = tuple,
        held_blobs: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self._stub = stub
        self._member_id = member_id
        self._kind = kind
        self._base_digests = base_digests
        self._held_blobs = held_blobs
        self._is_registered = False
        self._is_reachable = True
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """The bases have changed: register anew, now."""
        self._is_registered = False
        self._changed.set()

    @asynccontextmanager
    async def held(self, address: str) -> AsyncIterator[None]:
        """Be a member until the block is left; then leave, so that nobody calls here any more.

        Args:
            address: host:port at which others reach this process.
        """
        holding = asyncio.create_task(self._hold(address))
        try:
            yield
        finally:
            holding.cancel()
            await asyncio.gather(holding, return_exceptions=True)
            await self._leave()

    async def _hold(self, address: str) -> None:
        """Register and renew, forever, a third of the lease apart."""
        while True:
            self._changed.clear()
            try:
                wait_s = await self._renew(address)
            except Exception:
                # A defect of ours, once: a process that is not known gets no work at all.
                logger.exception("holding the lease failed: beginning again")
                self._is_registered, wait_s = False, RETRY_S
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _renew(self, address: str) -> float:
        """Register, or renew with what is held; seconds until the next time."""
        try:
            if not self._is_registered:
                await self._register(address)
            request = pb.RenewLeaseRequest(
                member_id=self._member_id, held_blobs=sorted(self._held_blobs())
            )
            renewed = await self._stub.RenewLease(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND and self._is_registered:
                self._is_registered = False
                return 0.0
            if self._is_reachable:
                logger.warning("cannot renew the lease", extra={"code": error.code().name})
            self._is_reachable = False
            return RETRY_S
        self._is_reachable = True
        return renewed.lease_ms / 3000

    async def _register(self, address: str) -> None:
        member = pb.Member(
            member_id=self._member_id,
            kind=self._kind,
            address=address,
            base_digests=self._base_digests(),
        )
        self._is_registered = True  # an announce meanwhile makes it False again
        try:
            await self._stub.Register(pb.RegisterRequest(member=member), timeout=ANSWER_S)
        except grpc.aio.AioRpcError:
            self._is_registered = False
            raise

    async def _leave(self) -> None:
        request = pb.UnregisterRequest(member_id=self._member_id)
        try:
            await self._stub.Unregister(request, timeout=_LEAVE_S)
        except grpc.aio.AioRpcError as error:
            logger.info("lease left to run out", extra={"code": error.code().name})
