"""When a call that failed is tried again, and after how long.

Knows errors and time; does not know any RPC. Whether a repetition is safe is the caller's word.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from hmi.errors import HmiError, ResourceExhausted, Unavailable


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounds of retrying. `RetryPolicy(max_attempts=1)` never retries."""

    max_attempts: int = 8
    """Tries in all, the first included. Eight outlast the restart of a gateway: 6 to 11 s."""
    initial_s: float = 0.1
    """Longest wait before the first retry; doubles with each one after."""
    max_s: float = 5.0
    """Longest wait between two tries. A server that asks for more is not waited for."""

    def delay(self, error: HmiError, attempt: int) -> float | None:
        """Seconds to wait after failed try number `attempt` (from 1); None not to try again.

        UNAVAILABLE waits a random time between half an exponential bound and all of it ("equal
        jitter"), and never less than the server asks; RESOURCE_EXHAUSTED is tried again only if the
        server says when.
        """
        if attempt >= self.max_attempts:
            return None
        asked = error.retry_after
        if isinstance(error, Unavailable):
            bound = min(self.max_s, self.initial_s * 2 ** (attempt - 1))
            jittered = random.uniform(bound / 2, bound)  # noqa: S311 — spreads load, hides nothing
            return jittered if asked is None else self._within_bound(asked + jittered / 10)
        if isinstance(error, ResourceExhausted) and asked is not None:
            return self._within_bound(asked + random.uniform(0, self.initial_s))  # noqa: S311
        return None

    def _within_bound(self, delay: float) -> float | None:
        return delay if delay <= self.max_s + self.initial_s else None


class Deadline:
    """The moment a call must be over, shared by all its tries."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else asyncio.get_running_loop().time() + timeout

    def remaining(self) -> float | None:
        """Seconds left, not less than 0; None if there is no deadline."""
        if self._end is None:
            return None
        return max(0.0, self._end - asyncio.get_running_loop().time())

    def allows(self, delay: float) -> bool:
        """Whether anything is left after waiting `delay` seconds."""
        remaining = self.remaining()
        return remaining is None or delay < remaining
