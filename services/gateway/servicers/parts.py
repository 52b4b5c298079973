"""Uploads as they come: a header, then chunks of bytes.

Knows the `part` that every upload's messages have; does not know what the bytes are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from services.common.errors import DeadlineExceeded, InvalidArgument
from services.gateway.streams import Pace, Progress


class Parts:
    """One upload's messages, which must keep coming."""

    def __init__(self, messages: AsyncIterator[Any], pace: Pace) -> None:
        self._messages = messages
        self._progress = Progress(pace)

    async def header(self) -> Any:
        """The first message's header.

        Raises:
            InvalidArgument: It has none.
            DeadlineExceeded: It does not come.
        """
        first = await self._progress.next(self._messages)
        if first is None or not first.HasField("header"):
            raise InvalidArgument("part", "the first message must be a header")
        self._progress.restart()
        return first.header

    async def chunks(self, what: str) -> AsyncIterator[bytes]:
        """The bytes of the messages after the first.

        Args:
            what: Names the upload in an error.

        Raises:
            InvalidArgument: Another header comes.
            DeadlineExceeded: Too few bytes come.
        """
        while (message := await self._next(what)) is not None:
            if not message.HasField("chunk"):
                raise InvalidArgument("part", "only the first message may be a header")
            self._progress.add(len(message.chunk))
            yield message.chunk

    async def _next(self, what: str) -> Any:
        try:
            return await self._progress.next(self._messages)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"{what}: {error.message}", reason=error.reason) from None
