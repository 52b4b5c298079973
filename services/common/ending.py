"""Writing to a streaming call, and why it ended: the server's own status, which grpc.aio may write
over.

Knows calls; does not know what they carry. When a write fails because the server has just ended the
call, grpc.aio (1.81, grpc/grpc#36066) sets INTERNAL "Internal error from Core" in place of the
status that the server sent, before or after it arrived. Callbacks see every status as it is set;
the server's is kept here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Coroutine
from typing import Any, TypeVar

import grpc
import grpc.aio

from services.common.errors import Unavailable

T = TypeVar("T")

_MASK = "Internal error from Core"
_PATIENCE_S = 1.0


class Ending:
    """Listens to a call from its beginning for the status it ends with."""

    def __init__(self, call: Any) -> None:
        self._status: grpc.aio.AioRpcError | None = None
        self._is_known = asyncio.Event()
        call.add_done_callback(self._on_status)

    def _on_status(self, call: Any) -> None:
        code = _at_once(call.code())
        details = _at_once(call.details())
        if _is_mask(code, details):
            return
        trailing = _at_once(call.trailing_metadata()) or grpc.aio.Metadata()
        self._status = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)
        self._is_known.set()

    async def meant(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The error that the server sent when the call raised this one.

        UNAVAILABLE if there is none: the connection broke, or the server was content without
        having had every request. Whether it did what it was asked is then not known.
        """
        if not _is_mask(error.code(), error.details()):
            return error
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._is_known.wait()
        except TimeoutError:
            return _unavailable("the connection broke while a request was being written")
        if self._status is None or self._status.code() is grpc.StatusCode.OK:
            return _unavailable("the server ended the call before it had every request")
        return self._status


async def write_all(call: Any, requests: AsyncIterable[object]) -> None:
    """Write the requests and say that they are all.

    A call that the server has ended takes no more; that is no error here, its status says why.
    """
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        return


def _unavailable(message: str) -> grpc.aio.AioRpcError:
    status = Unavailable(message, reason="STREAM_ENDED").to_status()
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), trailing, message)


def _is_mask(code: grpc.StatusCode, details: str | None) -> bool:
    return code is grpc.StatusCode.INTERNAL and details == _MASK


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that has nothing to wait for, since the call has ended."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        value: T = stop.value
        return value
    raise AssertionError("a call that has ended has its status")
