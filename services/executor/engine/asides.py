"""Work that is not batches, in small pieces on the engine's thread: when it is quiet, or seldom.

Knows how long pieces took and when the last batch ended; does not know what pieces do.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

# Of the thread's time while batches come: without it, work would starve under steady load.
SHARE = 0.1
# Without a batch for so long, nobody waits: a client that asks again and again is not disturbed.
QUIET_S = 0.1

Answer = TypeVar("Answer")


class Aside:
    """One piece, and who waits for it. The caller bounds its time: a batch may wait so long."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.future: Future[Any] = Future()
        self._call = call

    def run(self) -> None:
        """Run it, unless nobody waits any more. An error is the caller's."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self._call())
        except Exception as error:
            self.future.set_exception(error)


class Asides:
    """Pieces that wait. Not thread-safe."""

    def __init__(self) -> None:
        self._waiting: deque[Aside] = deque()
        self._has_share_at = 0.0
        self._is_quiet_at = 0.0

    def add(self, aside: Aside) -> None:
        """Let a piece wait."""
        self._waiting.append(aside)

    def note_batch(self) -> None:
        """A batch has just ended."""
        self._is_quiet_at = time.monotonic() + QUIET_S

    @property
    def due_at(self) -> float:
        """When the oldest may run, in `time.monotonic()` seconds; infinity if none waits."""
        return min(self._has_share_at, self._is_quiet_at) if self._waiting else float("inf")

    def run_one(self) -> None:
        """Run the oldest if it is due."""
        started = time.monotonic()
        if self.due_at > started:
            return
        self._waiting.popleft().run()
        ended = time.monotonic()
        self._has_share_at = ended + (ended - started) * (1 / SHARE - 1)

    def cancel(self) -> None:
        """Tell who waits that nothing comes."""
        while self._waiting:
            self._waiting.popleft().future.cancel()
