"""Adapters that could not come: what is told of them, and when they may be tried again.

Knows errors and times; does not know who waits. Not thread-safe: the store's lock guards it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

from services.common.errors import HmiError, Unavailable
from services.executor.adapters.slots import Key

_MAX_KEPT = 4096
# A refusal is the blob's own, so that trying again is mostly in vain; nothing is known for ever.
_REFUSED_S = 300.0
# Who waits asks again at once when a load fails; an older error says nothing of the next load.
_ERROR_S = 10.0
_BACKOFF_MIN_S = 0.1
_BACKOFF_MAX_S = 5.0
# A failure so long after the last one is a first one.
_CALM_S = 60.0
# A tenant's loads are suspect for so long after one failed.
_SUSPECT_S = 10.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True)
class _Failure:
    """A load that failed, `num` times in a row; times as of `time.monotonic()`, in seconds."""

    error: HmiError
    num: int
    failed_at: float
    retry_at: float
    is_told: bool = False

    def is_fresh(self, now: float) -> bool:
        """Whether who asks now is told of it."""
        return now < self.retry_at or (not self.is_told and now < self.failed_at + _ERROR_S)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What can hardly ever be loaded, and until when that is believed, by `time.monotonic()`."""

    error: HmiError
    until: float


class Failures:
    """The latest failures, by key; refusals by digest, for minutes: they are the blob's own."""

    def __init__(self) -> None:
        self._failures: dict[Key, _Failure] = {}
        self._refused: dict[str, _Refusal] = {}
        self._suspect_until: dict[str, float] = {}  # by tenant

    def is_known(self, key: Key) -> bool:
        """Whether a load would be in vain, or come too soon."""
        failure = self._failures.get(key)
        is_fresh = failure is not None and failure.is_fresh(time.monotonic())
        return is_fresh or self._refusal(key) is not None

    def is_suspect(self, tenant: str) -> bool:
        """Whether a load of the tenant failed of late, and none came to a good end since."""
        return time.monotonic() < self._suspect_until.get(tenant, 0.0)

    def tell(self, key: Key) -> HmiError | None:
        """Why the adapter cannot come, as an error that nobody else has: of refusals as long as
        they are believed, of failures until they may be retried, and once at least."""
        refusal = self._refusal(key)
        if refusal is not None:
            return refusal.error.fresh()
        now = time.monotonic()
        failure = self._failures.get(key)
        if failure is None or not failure.is_fresh(now):
            return None
        failure.is_told = True
        error = failure.error
        if isinstance(error, Unavailable) and now < failure.retry_at:
            wait_s = failure.retry_at - now
            return Unavailable(error.message, reason=error.reason, retry_after_s=wait_s)
        return error.fresh()

    def refuse(self, key: Key, error: HmiError) -> None:
        """It cannot be loaded, however often it is tried."""
        refusal = _Refusal(error.fresh(), time.monotonic() + _REFUSED_S)
        _keep(self._refused, key.digest, refusal)
        self._suspect(key)

    def fail(self, key: Key, error: HmiError) -> None:
        """It could not be loaded this time: try again later, and later each time."""
        now = time.monotonic()
        before = self._failures.pop(key, None)
        num = 1 if before is None or before.retry_at < now - _CALM_S else before.num + 1
        delay_s = min(_BACKOFF_MAX_S, _BACKOFF_MIN_S * 2 ** min(num - 1, 30))
        delay_s *= random.uniform(0.5, 1.0)  # noqa: S311 — spreads, hides nothing
        _keep(self._failures, key, _Failure(error.fresh(), num, now, now + delay_s))
        self._suspect(key)

    def give_up(self, key: Key, error: HmiError) -> None:
        """It was loaded and found no room: who asks again may find some."""
        now = time.monotonic()
        _keep(self._failures, key, _Failure(error.fresh(), 0, now, now))

    def end(self, key: Key) -> None:
        """It was loaded after all."""
        self.forget(key)
        self._suspect_until.pop(key.tenant, None)

    def forget(self, key: Key) -> None:
        """Its next load is a first one."""
        self._failures.pop(key, None)

    def _refusal(self, key: Key) -> _Refusal | None:
        refusal = self._refused.get(key.digest)
        if refusal is not None and refusal.until < time.monotonic():
            del self._refused[key.digest]
            return None
        return refusal

    def _suspect(self, key: Key) -> None:
        self._suspect_until.pop(key.tenant, None)
        _keep(self._suspect_until, key.tenant, time.monotonic() + _SUSPECT_S)


def _keep(latest: dict[K, V], key: K, value: V) -> None:
    """Remember something, and forget the oldest beyond the bound."""
    latest[key] = value
    while len(latest) > _MAX_KEPT:
        del latest[next(iter(latest))]
