"""A number of bytes that concurrent work shares.

Knows amounts only. Work takes bytes as it needs them, so that what is only announced keeps nobody
waiting. Since many may then hold something and wait for more, the first that waits may always go
on, beyond the budget if need be: nobody waits for ever, and no more is held than the budget and
what one of them needs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """Bytes that may be held at a time.

    Args:
        total_bytes: All there are, but for what the one holder needs that goes beyond.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._held = 0
        self._waiting: deque[tuple[Holding, int, asyncio.Future[None]]] = deque()
        self._beyond: Holding | None = None

    @property
    def held_bytes(self) -> int:
        """Held by all."""
        return self._held

    @contextmanager
    def holding(self) -> Iterator[Holding]:
        """Something to hold bytes with for a block; nothing at first."""
        held = Holding(self)
        try:
            yield held
        finally:
            held.release()

    async def _take(self, holding: Holding, size_bytes: int) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if holding is self._beyond:
            self._give(holding, size_bytes, future)
            return
        self._waiting.append((holding, size_bytes, future))
        self._admit()
        try:
            await future
        except asyncio.CancelledError:
            self._admit()
            raise

    def _give(self, holding: Holding, size_bytes: int, future: asyncio.Future[None]) -> None:
        self._held += size_bytes
        holding.size_bytes += size_bytes
        future.set_result(None)

    def _give_back(self, holding: Holding) -> None:
        self._held -= holding.size_bytes
        holding.size_bytes = 0
        if holding is self._beyond:
            self._beyond = None
        self._admit()

    def _moved(self, holding: Holding) -> Holding:
        other = Holding(self)
        other.size_bytes, holding.size_bytes = holding.size_bytes, 0
        if holding is self._beyond:
            self._beyond = other
        return other

    def _admit(self) -> None:
        """Give to those who wait, in their order, as far as the bytes go; then to one beyond."""
        while self._waiting:
            holding, size_bytes, future = self._waiting[0]
            if not future.done():
                if self._held + size_bytes > self._total:
                    if self._beyond is not None:
                        return
                    self._beyond = holding
                self._give(holding, size_bytes, future)
            self._waiting.popleft()


class Holding:
    """What one piece of work holds of a budget; made by `ByteBudget.holding` or alone."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.size_bytes = 0

    async def grow(self, size_bytes: int) -> None:
        """Hold more, waiting for others to give theirs back. One at a time."""
        await self._budget._take(self, size_bytes)

    def hand_over(self) -> Holding:
        """Let another hold these bytes instead, for work that goes on longer."""
        return self._budget._moved(self)

    def release(self) -> None:
        """Give all back. A second time does nothing."""
        self._budget._give_back(self)
