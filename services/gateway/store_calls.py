"""Calls to the knowledge store whose errors are passed on to the caller.

Knows which of the store's errors are the caller's and which are ours; does not know the calls.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable
from typing import TYPE_CHECKING, TypeVar

import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.ending import Ending, write_all
from services.common.errors import (
    HmiError,
    Internal,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    from_rpc_error,
)

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A store that is connected and silent must not hold callers forever.
ANSWER_S = 30.0
# A blob's answer comes when all of it is on the disk.
_BLOB_ANSWER_S = 300.0


async def ask(call: Awaitable[T], timeout_s: float = ANSWER_S, ending: Ending | None = None) -> T:
    """A call's answer. `ending` listens to a call that was written to.

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
        raise passed_on(error if ending is None else await ending.meant(error)) from error


async def write_blob(
    stub: KnowledgeServiceAsyncStub, requests: AsyncIterable[pb.WriteBlobRequest]
) -> None:
    """Send a blob, or the rest of one, until it is durable.

    What the requests' own iterator raises ends the call and is raised.

    Raises:
        HmiError: As `ask`, also if the store refused it while bytes were on their way.
    """
    call = stub.WriteBlob()
    ending = Ending(call)
    try:
        await write_all(call, requests)
        await ask(call, _BLOB_ANSWER_S, ending)
    finally:
        call.cancel()


def passed_on(error: grpc.aio.AioRpcError) -> HmiError:
    """The store's error as the caller is to see it."""
    translated = from_rpc_error(error)
    if isinstance(translated, Unauthenticated | PermissionDenied):
        logger.error("the knowledge store refuses this gateway", extra={"error": str(translated)})
        return Internal("internal error: the services do not know each other")
    return translated
