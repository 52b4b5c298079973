"""A token bucket that may go into debt: what a rate allows, and how long until it allows more.

Knows amounts and times that it is told; does not know a clock, nor what its units are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """Units that come at a rate, up to a burst. A rate of 0 is unlimited."""

    rate: float
    burst: float
    level: float
    updated_at: float

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> Bucket:
        """A bucket of which nothing is used yet."""
        return cls(rate, burst, burst, now)

    def set_rate(self, rate: float, burst: float, now: float) -> None:
        """Go on with another rate, keeping what was used."""
        if (rate, burst) != (self.rate, self.burst):
            self.refill(now)
            self.level += burst - self.burst
            self.rate, self.burst = rate, burst

    def wait_s(self, need: float, now: float) -> float:
        """Seconds until the level reaches `need`; 0 if it has."""
        if self.rate == 0:
            return 0.0
        self.refill(now)
        return max(0.0, (need - self.level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Use an amount, into debt if need be; a negative one gives back."""
        if self.rate:
            self.refill(now)
            self.level = min(self.burst, self.level - amount)

    def refill(self, now: float) -> None:
        """Add what came since the last time."""
        self.level = min(self.burst, self.level + (now - self.updated_at) * self.rate)
        self.updated_at = now
