"""Calls to the knowledge store whose errors are passed on to the caller.

Knows which of the store's errors are the caller's and which are ours; does not know the calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

import grpc.aio

from services.common.errors import (
    HmiError,
    Internal,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A store that is connected and silent must not hold callers forever.
ANSWER_S = 30.0
# A blob's answer comes when all of it is on the disk.
BLOB_ANSWER_S = 300.0


async def ask(call: Awaitable[T], timeout_s: float = ANSWER_S) -> T:
    """A call's answer.

    Raises:
        Unavailable: None came in time; whether the store did it is not known.
        HmiError: The store's error. A refused service token is ours to mend, so it is Internal.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await call
    except TimeoutError:
        raise Unavailable(
            f"the knowledge store did not answer in {timeout_s} s: look whether it did it, retry",
            reason="STORE_SILENT",
            retry_after_s=1.0,
        ) from None
    except grpc.aio.AioRpcError as error:
        raise passed_on(error) from error


def passed_on(error: grpc.aio.AioRpcError) -> HmiError:
    """The store's error as the caller is to see it."""
    translated = from_rpc_error(error)
    if isinstance(translated, Unauthenticated | PermissionDenied):
        logger.error("the knowledge store refuses this gateway", extra={"error": str(translated)})
        return Internal("internal error: the services do not know each other")
    return translated
