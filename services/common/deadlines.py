"""Deadlines of many items: which have passed, and when the next one does.

A pure data structure: time is a number given by the caller. Ended items are dropped lazily.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


class Deadlines(Generic[T]):
    """A heap of deadlines.

    Args:
        is_over: Whether an item has ended otherwise and its deadline no longer matters.
    """

    def __init__(self, is_over: Callable[[T], bool]) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._is_over = is_over
        self._num_added = 0
        self._compact_at = 1024

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline: float, item: T) -> None:
        """Watch an item."""
        self._num_added += 1
        heappush(self._heap, (deadline, self._num_added, item))
        if len(self._heap) >= self._compact_at:
            self._heap = [entry for entry in self._heap if not self._is_over(entry[2])]
            heapify(self._heap)
            self._compact_at = max(1024, 2 * len(self._heap))

    def next_at(self) -> float | None:
        """The earliest deadline of an item that has not ended."""
        while self._heap and self._is_over(self._heap[0][2]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expired(self, now: float) -> list[T]:
        """Items whose deadline has passed and that had not ended, earliest first.

        They are dropped.
        """
        passed = []
        while (at := self.next_at()) is not None and at <= now:
            passed.append(heappop(self._heap)[2])
        return passed
