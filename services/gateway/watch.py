"""Keeps the mirror up to date and this gateway registered.

Knows the store's `Watch` and leases; does not know what the mirror makes of them. Neither loop ends
by itself: the store may be away for long, and both go on when it is back.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.gateway.mirror import Mirror

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

# The store gives a sign of life every five seconds; three missed mean a connection that only looks
# alive.
SILENCE_S = 15.0
RETRY_S = 0.25
# A renewal that hangs must end while the lease still lives.
ANSWER_S = 2.0


async def follow(mirror: Mirror, stub: KnowledgeServiceAsyncStub) -> None:
    """Feed the mirror from `Watch`, forever."""
    is_connected = True
    while True:
        try:
            async with asyncio.timeout(SILENCE_S) as silence:
                request = pb.WatchRequest(from_revision=mirror.revision)
                async for response in stub.Watch(request):
                    silence.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
                    mirror.apply(response)
                    if not is_connected:
                        logger.info("the knowledge store is back")
                        is_connected = True
        except (grpc.aio.AioRpcError, TimeoutError) as error:
            if is_connected:
                logger.warning("lost the knowledge store", extra={"error": repr(error)[:500]})
                is_connected = False
        except Exception:
            # A defect of ours, or a change nobody foresaw: without this loop every later change,
            # revoked keys too, would be missed.
            logger.exception("following the knowledge store failed: beginning again")
        mirror.interrupted()
        await asyncio.sleep(RETRY_S)


async def stay_registered(stub: KnowledgeServiceAsyncStub, member: pb.Member) -> None:
    """Hold a lease for this gateway, forever; give it back when cancelled."""
    lease_s: float | None = None
    try:
        while True:
            try:
                if lease_s is None:
                    register = pb.RegisterRequest(member=member)
                    answer = await stub.Register(register, timeout=ANSWER_S)
                    lease_s = answer.lease_ms / 1000
                else:
                    renew = pb.RenewLeaseRequest(member_id=member.member_id)
                    renewed = await stub.RenewLease(renew, timeout=ANSWER_S)
                    lease_s = renewed.lease_ms / 1000
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    lease_s = None
                logger.info("lease not renewed", extra={"code": error.code().name})
                await asyncio.sleep(RETRY_S)
                continue
            await asyncio.sleep(lease_s / 3)
    finally:
        if lease_s is not None:
            await _unregister(stub, member.member_id)


async def _unregister(stub: KnowledgeServiceAsyncStub, member_id: str) -> None:
    try:
        await stub.Unregister(pb.UnregisterRequest(member_id=member_id), timeout=1.0)
    except grpc.aio.AioRpcError as error:
        logger.info("lease left to run out", extra={"code": error.code().name})
