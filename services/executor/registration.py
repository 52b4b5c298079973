"""Keeps this executor known to the store, and the blobs it uses from being collected.

Knows leases; does not know what is served. While the store is away nothing here fails: the lease is
renewed or begun anew once it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

RETRY_S = 0.5
CALL_TIMEOUT_S = 5.0


class Registration:
    """This process as a member.

    Args:
        stub: The store.
        executor_id: Unique among members.
        base_digests: The bases served now.
        held_blobs: The blobs in use now.
    """

    def __init__(
        self,
        stub: KnowledgeServiceAsyncStub,
        *,
        executor_id: str,
        base_digests: Callable[[], list[str]],
        held_blobs: Callable[[], list[str]],
    ) -> None:
        self._stub = stub
        self._executor_id = executor_id
        self._address = ""
        self._base_digests = base_digests
        self._held_blobs = held_blobs
        self._is_registered = False
        self._is_reachable = True
        self._is_ended = False
        self._changed = asyncio.Event()

    def announce(self) -> None:
        """The bases have changed: register anew, now."""
        self._is_registered = False
        self._changed.set()

    async def run(self, address: str) -> None:
        """Register and renew until `end`, a third of the lease apart.

        Args:
            address: host:port at which gateways reach this process.
        """
        self._address = address
        while not self._is_ended:
            self._changed.clear()
            wait_s = await self._renew()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def end(self) -> None:
        """Leave, so that gateways send no further items here."""
        self._is_ended = True
        try:
            await self._stub.Unregister(
                pb.UnregisterRequest(member_id=self._executor_id), timeout=1.0
            )
        except grpc.aio.AioRpcError as error:
            logger.warning("could not unregister", extra={"code": error.code().name})

    async def _renew(self) -> float:
        """Register, or renew with what is held; seconds until the next time."""
        try:
            lease_ms = await (self._send_lease() if self._is_registered else self._register())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND and self._is_registered:
                self._is_registered = False
                return 0.0
            if self._is_reachable:
                logger.warning("cannot renew the lease", extra={"code": error.code().name})
            self._is_reachable = False
            return RETRY_S
        self._is_reachable = True
        return lease_ms / 3000

    async def _register(self) -> int:
        member = pb.Member(
            member_id=self._executor_id,
            kind=pb.MEMBER_KIND_EXECUTOR,
            address=self._address,
            base_digests=self._base_digests(),
        )
        self._is_registered = True  # an announce meanwhile makes it False again
        try:
            await self._stub.Register(pb.RegisterRequest(member=member), timeout=CALL_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            self._is_registered = False
            raise
        return await self._send_lease()

    async def _send_lease(self) -> int:
        request = pb.RenewLeaseRequest(
            member_id=self._executor_id, held_blobs=sorted(self._held_blobs())
        )
        response = await self._stub.RenewLease(request, timeout=CALL_TIMEOUT_S)
        return response.lease_ms
