"""Feeds a copy of the knowledge store's metadata from `Watch`, through the store's absences.

Knows the stream and its silence; does not know what the copy makes of the changes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Protocol

import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

# The store gives a sign of life every five seconds; three missed mean a connection that only looks
# alive.
SILENCE_S = 15.0
RETRY_S = 0.25


class Copy(Protocol):
    """What is kept up to date. Its last state stands while the store is away."""

    @property
    def revision(self) -> int:
        """The last revision taken over whole; 0 asks for a snapshot."""
        ...

    def apply(self, response: pb.WatchResponse) -> None:
        """Take over one message: a piece of a snapshot, changes, or a sign of life."""
        ...

    def interrupted(self) -> None:
        """The stream ended: what there is of an unfinished snapshot is worth nothing."""
        ...


async def follow(copy: Copy, stub: KnowledgeServiceAsyncStub) -> None:
    """Feed the copy, forever."""
    is_connected = True
    while True:
        try:
            async with asyncio.timeout(SILENCE_S) as silence:
                async for response in stub.Watch(pb.WatchRequest(from_revision=copy.revision)):
                    silence.reschedule(asyncio.get_running_loop().time() + SILENCE_S)
                    copy.apply(response)
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
        copy.interrupted()
        await asyncio.sleep(RETRY_S)
