"""Calls to the knowledge store whose errors are passed on to the caller.

Knows which of the store's errors are the caller's and which are ours; does not know the calls.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import TypeVar

import grpc.aio

from services.common.errors import (
    HmiError,
    Internal,
    PermissionDenied,
    Unauthenticated,
    from_rpc_error,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")


async def ask(call: Awaitable[T]) -> T:
    """A call's answer.

    Raises:
        HmiError: The store's error. A refused service token is ours to mend, so it is Internal.
    """
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise passed_on(error) from error


def passed_on(error: grpc.aio.AioRpcError) -> HmiError:
    """The store's error as the caller is to see it."""
    translated = from_rpc_error(error)
    if isinstance(translated, Unauthenticated | PermissionDenied):
        logger.error("the knowledge store refuses this gateway", extra={"error": str(translated)})
        return Internal("internal error: the services do not know each other")
    return translated
