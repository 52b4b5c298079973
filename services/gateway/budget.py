"""A number of bytes that concurrent work shares.

Knows amounts only. Waiters are served in their order, so that a large one is not starved.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """Bytes that may be held at a time.

    Args:
        total_bytes: All there are. A larger demand waits until nothing else is held.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def acquire(self, size_bytes: int) -> None:
        """Hold bytes, waiting for others to give theirs back."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, future))
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release(size_bytes)
            self._admit()
            raise

    def release(self, size_bytes: int) -> None:
        """Give bytes back."""
        self._held -= size_bytes
        self._admit()

    @asynccontextmanager
    async def holding(self, size_bytes: int) -> AsyncIterator[None]:
        """Hold bytes for a block."""
        await self.acquire(size_bytes)
        try:
            yield
        finally:
            self.release(size_bytes)

    def _admit(self) -> None:
        while self._waiting:
            size_bytes, future = self._waiting[0]
            if future.done():
                self._waiting.popleft()
            elif self._held == 0 or self._held + size_bytes <= self._total:
                self._waiting.popleft()
                self._held += size_bytes
                future.set_result(None)
            else:
                return
