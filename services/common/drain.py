"""Reads for a moment what a caller still sends to a call whose answer is known.

Knows streams of messages; does not know the call. grpc.aio's client (1.81, grpc/grpc#36066) writes
INTERNAL "Internal error from Core" over the status it is sent if that status meets a message on its
way out. A caller that has sent all, or pauses, gets the status as it is; one that goes on and on is
not waited for, and needs `services.common.ending`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable

from google.protobuf.message import Message

logger = logging.getLogger(__name__)

MAX_BYTES = 8 << 20
MAX_S = 1.0
# Longer than the way to a caller and back that has filled its window, in one region.
QUIET_S = 0.1


async def drain(requests: AsyncIterable[Message]) -> None:
    """Pass over requests until the caller has sent its last, is quiet for 0.1 s, or has had its
    8 MiB or its second.

    Nothing is waited for if the call's own reading was at the end, or was broken off.
    """
    num_bytes = 0
    try:
        async with asyncio.timeout(MAX_S):
            rest = aiter(requests)
            while num_bytes < MAX_BYTES:
                async with asyncio.timeout(QUIET_S):
                    request = await anext(rest, None)
                if request is None:
                    return
                num_bytes += request.ByteSize()
    except TimeoutError:
        return
    except Exception as error:
        # The caller is to hear how its call ended, not that its last messages could not be read.
        logger.debug("could not read on", extra={"error": repr(error)[:500]})
