"""Work that is not batches, in small pieces on the engine's thread: when it is idle, or seldom.

Knows how long pieces took; does not know what they do.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

# Of the thread's time while batches wait: without it, work would starve under steady load.
SHARE = 0.1

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
        self._due_at = 0.0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, aside: Aside) -> None:
        """Let a piece wait."""
        self._waiting.append(aside)

    def run_one(self, *, is_idle: bool) -> None:
        """Run the oldest if nothing else is to be done, or if batches have had their share."""
        started = time.monotonic()
        if not self._waiting or not (is_idle or started >= self._due_at):
            return
        self._waiting.popleft().run()
        ended = time.monotonic()
        self._due_at = ended + (ended - started) * (1 / SHARE - 1)

    def cancel(self) -> None:
        """Tell who waits that nothing comes."""
        while self._waiting:
            self._waiting.popleft().future.cancel()
