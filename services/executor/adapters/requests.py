"""Adapters on their way in, and those that could not come.

Knows order, claims and errors; loads nothing. Not thread-safe: the store's lock guards it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from services.common.errors import HmiError, InvalidArgument, ResourceExhausted
from services.executor.adapters.packing import Packed
from services.executor.adapters.slots import Key

# Between disk and device at a time: bounds what the host tier cannot. How large an adapter is shows
# when it was read, so few are read at once.
_MAX_STAGED = 64
_MAX_STAGED_BYTES = 1 << 30
_MAX_READING = 8
_MAX_PASSED = 32
_MAX_BLOCK_S = 2.0
_OVERDUE_S = 2.0
_MAX_ERRORS = 4096
# Who waits asks again at once when a load fails; an older error says nothing of the next load.
_ERROR_S = 10.0
_PERMANENT = (InvalidArgument, ResourceExhausted)  # of the blob itself: no retry can mend it


@dataclass(slots=True)
class Request:
    """An adapter on its way in.

    Attributes:
        is_claimed: Somebody waits for it; otherwise it is a hint.
        packed: Set once it is in host memory.
        num_passed: Later loads that went by while it waited for room.
        blocks_until: When it has been passed too often: no load goes by until then. In
            `time.monotonic()` seconds.
    """

    key: Key
    is_claimed: bool
    is_staging: bool = False
    packed: Packed | None = None
    num_passed: int = 0
    blocks_until: float | None = None
    asked_at: float = field(default_factory=time.monotonic)

    @property
    def taker(self) -> str | None:
        """For whom room is made: its tenant; once it is overdue, whoever it costs."""
        return self.key.tenant if time.monotonic() < self.asked_at + _OVERDUE_S else None

    def blocks(self, now: float) -> bool:
        """Whether later loads must wait for this one, which found no room: for a bounded time
        after a bounded number of them went by, again and again until it has found room."""
        if self.num_passed < _MAX_PASSED:
            return False
        if self.blocks_until is None:
            self.blocks_until = now + _MAX_BLOCK_S
        if now < self.blocks_until:
            return True
        self.num_passed, self.blocks_until = 0, None
        return False


class Requests:
    """Requests: claims before hints, of the tenant that has least first, then in order of arrival.

    Args:
        num_rows_of: Rows that a tenant has in device memory.
    """

    def __init__(self, num_rows_of: Callable[[str], int] = lambda _tenant: 0) -> None:
        self._num_rows_of = num_rows_of
        self._requests: dict[Key, Request] = {}
        self._untold: dict[Key, tuple[HmiError, float]] = {}  # and until when, as `blocks_until`
        self._refused: dict[str, HmiError] = {}  # by digest

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(key.digest for key in self._requests)

    def add(self, key: Key, *, is_claimed: bool) -> bool:
        """Ask for an adapter; whether that is news."""
        request = self._requests.get(key)
        if request is not None:
            request.is_claimed |= is_claimed
            return False
        if not is_claimed and self._is_untold(key):
            return False
        refusal = self._refused.get(key.digest)
        if refusal is not None:
            self._keep(key, refusal)
            return False
        self._requests[key] = Request(key, is_claimed)
        return True

    def take(self, key: Key) -> Request | None:
        """Remove a request."""
        return self._requests.pop(key, None)

    def clear(self) -> None:
        self._requests.clear()

    def fail(self, request: Request, error: HmiError) -> None:
        """End a request, unless it was taken meanwhile; remember the error."""
        if self._requests.get(request.key) is not request:
            return
        del self._requests[request.key]
        self._keep(request.key, error)
        if isinstance(error, _PERMANENT):
            self._refused[request.key.digest] = error
        while len(self._refused) > _MAX_ERRORS:
            del self._refused[next(iter(self._refused))]

    def tell(self, key: Key) -> HmiError | None:
        """Why the adapter could not come just now, told once."""
        error = self._untold[key][0] if self._is_untold(key) else None
        self._untold.pop(key, None)
        return error

    def _keep(self, key: Key, error: HmiError) -> None:
        self._untold[key] = error, time.monotonic() + _ERROR_S
        while len(self._untold) > _MAX_ERRORS:
            del self._untold[next(iter(self._untold))]

    def _is_untold(self, key: Key) -> bool:
        return key in self._untold and time.monotonic() < self._untold[key][1]

    def to_stage(self) -> list[Request]:
        """Those to be read next, as many as may be between disk and device."""
        packed = [r.packed for r in self._requests.values() if r.packed is not None]
        if sum(one.size_bytes for one in packed) >= _MAX_STAGED_BYTES:
            return []
        num_reading = sum(r.is_staging for r in self._requests.values())
        waiting = [r for r in self._in_order() if not r.is_staging and r.packed is None]
        room = min(_MAX_STAGED - len(packed) - num_reading, _MAX_READING - num_reading)
        return waiting[: max(0, room)]

    def staged(self) -> list[tuple[Request, Packed]]:
        """Those in host memory."""
        return [(r, r.packed) for r in self._in_order() if r.packed is not None]

    def _in_order(self) -> Iterator[Request]:
        return iter(
            sorted(
                self._requests.values(),
                key=lambda request: (not request.is_claimed, self._num_rows_of(request.key.tenant)),
            )
        )
