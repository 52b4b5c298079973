"""Reads for a moment what a caller still sends to a call whose answer is known.

Knows streams of messages; does not know the call. grpc.aio's client (1.81, grpc/grpc#36066) writes
INTERNAL "Internal error from Core" over the status it is sent if that status meets a message on its
way out. A caller that has sent all, or pauses, gets the status as it is; one that goes on and on is
not waited for, and needs `services.common.ending`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator

from google.protobuf.message import Message

logger = logging.getLogger(__name__)

MAX_BYTES = 8 << 20
MAX_S = 1.0
# Longer than the way to a caller and back that has filled its window, in one region.
QUIET_S = 0.1
# The most that one look at the clock counts for. While this process does not run, as on a machine
# with too much to do, nothing can be read: that is not the caller's being quiet.
TICK_S = 0.01


async def drain(requests: AsyncIterable[Message]) -> None:
    """Pass over requests until the caller has sent its last, is quiet for 0.1 s, or has had its
    8 MiB or its second. The seconds are those in which this process ran.

    Nothing is waited for if the call's own reading was at the end, or was broken off.
    """
    try:
        await _read_on(aiter(requests))
    except Exception as error:
        # The caller is to hear how its call ended, not that its last messages could not be read.
        logger.debug("could not read on", extra={"error": repr(error)[:500]})


async def _read_on(requests: AsyncIterator[Message]) -> None:
    loop = asyncio.get_running_loop()
    num_bytes, spent_s, quiet_s, seen = 0, 0.0, 0.0, loop.time()
    while num_bytes < MAX_BYTES:
        reading = asyncio.ensure_future(anext(requests, None))
        try:
            while not reading.done():
                if spent_s >= MAX_S or quiet_s >= QUIET_S:
                    return
                await asyncio.wait({reading}, timeout=TICK_S)
                now = loop.time()
                step_s, seen = min(now - seen, TICK_S), now
                spent_s, quiet_s = spent_s + step_s, quiet_s + step_s
        finally:
            reading.cancel()
            await asyncio.wait({reading})
        request = reading.result()
        if request is None:
            return
        num_bytes, quiet_s = num_bytes + request.ByteSize(), 0.0
