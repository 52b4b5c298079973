"""ExecutorService: parse, call, reply.

Knows streams' beginnings and ends; does not know what items are or how they run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

import grpc.aio

from hmi.executor.v1 import executor_pb2 as pb
from hmi.executor.v1 import executor_pb2_grpc
from services.common.errors import STOPPING, Unavailable
from services.executor import status
from services.executor.session import Session

logger = logging.getLogger(__name__)

_Execute = grpc.aio.ServicerContext[pb.ExecuteRequest, pb.ExecuteResponse]
_WatchStatus = grpc.aio.ServicerContext[pb.WatchStatusRequest, pb.WatchStatusResponse]


class ExecutorServicer(executor_pb2_grpc.ExecutorServiceServicer):
    """One stream a gateway, and the state for whoever asks.

    Args:
        executor_id: This process's id among members.
        open_session: Makes a stream's session.
        take_snapshot: The state now.
    """

    def __init__(
        self,
        executor_id: str,
        open_session: Callable[[], Session],
        take_snapshot: Callable[[], status.Snapshot],
    ) -> None:
        self._executor_id = executor_id
        self._open_session = open_session
        self._take_snapshot = take_snapshot
        self._sessions: set[Session] = set()
        self._stopping = asyncio.Event()

    async def Execute(
        self, request_iterator: AsyncIterator[pb.ExecuteRequest], context: _Execute
    ) -> AsyncIterator[pb.ExecuteResponse]:
        if self._stopping.is_set():
            raise _stopping()
        session = self._open_session()
        self._sessions.add(session)
        reader = asyncio.create_task(session.read(request_iterator))
        try:
            async for response in session.responses():
                yield response
        finally:
            self._sessions.discard(session)
            session.close()
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader

    async def WatchStatus(
        self, request: pb.WatchStatusRequest, context: _WatchStatus
    ) -> AsyncIterator[pb.WatchStatusResponse]:
        async for response in status.follow(self._executor_id, self._take_snapshot):
            if self._stopping.is_set():
                raise _stopping()
            yield response

    def flush(self) -> None:
        """Let every stream look again for credit to grant: its share has changed."""
        for session in self._sessions:
            session.flush()

    def refuse(self) -> None:
        """Take no further streams."""
        self._stopping.set()

    def end(self) -> None:
        """End every stream after its unsent news."""
        for session in self._sessions:
            session.end(_stopping())


def _stopping() -> Unavailable:
    return Unavailable("the executor is stopping", reason=STOPPING)
