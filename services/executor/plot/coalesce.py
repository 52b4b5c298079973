"""Slow work on a thread of its own, done once for however many ask for it meanwhile.

Knows when it is wanted; does not know what it does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

_REST = 9.0  # of the time that the work took: it gets at most a tenth of a core


class Coalesced:
    """Runs `work` soon after somebody asked, and rests after it for a while.

    The thread begins with the first who asks.

    Args:
        work: Takes all that was asked for before it began. May be slow; may raise.
        name: The thread's.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self._is_wanted = threading.Event()
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._starting = threading.Lock()

    def ask(self) -> None:
        """Have the work done. Never blocks; any thread."""
        with self._starting:
            if not self._thread.ident and not self._is_closed.is_set():
                self._thread.start()
        self._is_wanted.set()

    def close(self) -> None:
        """Do no more work; waits for what is under way."""
        with self._starting:
            self._is_closed.set()
        self._is_wanted.set()
        if self._thread.ident:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_closed.is_set():
            self._is_wanted.wait()
            self._is_wanted.clear()
            if self._is_closed.is_set():
                return
            started = time.monotonic()
            try:
                self._work()
            except Exception:  # whoever asks next may have more luck; the thread must live on
                logger.exception("background work failed", extra={"work": self._thread.name})
            self._is_closed.wait(_REST * (time.monotonic() - started))
