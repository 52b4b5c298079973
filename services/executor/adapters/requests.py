"""Adapters on their way in.

Knows order and claims, and by `failures` what could not come; loads nothing. Not thread-safe: the
store's lock guards it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from services.common.errors import HmiError, Unavailable
from services.executor.adapters.failures import Failures
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
# Read at a time for tenants whose loads failed of late: they have nothing in device memory, so they
# would come first, and what fails takes as long as what does not.
_MAX_READING_SUSPECT = 1


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
        self._failures = Failures()

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(key.digest for key in self._requests)

    def add(self, key: Key, *, is_claimed: bool) -> bool:
        """Ask for an adapter; whether that is news. A hint for what just failed is passed over."""
        request = self._requests.get(key)
        if request is not None:
            request.is_claimed |= is_claimed
            return False
        if self._failures.is_known(key):
            return False
        self._requests[key] = Request(key, is_claimed)
        return True

    def take(self, key: Key) -> Request | None:
        """Remove a request."""
        return self._requests.pop(key, None)

    def forget(self, key: Key) -> None:
        """Remove a request, and what is known of its failures."""
        self._failures.forget(key)
        self.take(key)

    def loaded(self, key: Key) -> Request | None:
        """Remove a request that came to its end well."""
        self._failures.end(key)
        return self.take(key)

    def clear(self) -> None:
        self._requests.clear()

    def refuse(self, request: Request, error: HmiError) -> None:
        """End a request, unless it was taken meanwhile: no retry can mend this error."""
        if self._is_open(request):
            self._failures.refuse(request.key, error)

    def fail(self, request: Request, error: HmiError) -> None:
        """End a request, unless it was taken meanwhile; the next one waits a while."""
        if self._is_open(request):
            self._failures.fail(request.key, error)

    def give_up(self, request: Request) -> None:
        """End a request that can find no room, unless it was taken meanwhile."""
        if self._is_open(request):
            error = Unavailable("pinned adapters leave too little device memory", reason="NO_ROOM")
            self._failures.give_up(request.key, error)

    def tell(self, key: Key) -> HmiError | None:
        """Why the adapter could not come just now."""
        return self._failures.tell(key)

    def _is_open(self, request: Request) -> bool:
        """Whether a request is still wanted; from now on it is not."""
        if self._requests.get(request.key) is not request:
            return False
        del self._requests[request.key]
        return True

    def to_stage(self) -> list[Request]:
        """Those to be read next, as many as may be between disk and device."""
        packed = [r.packed for r in self._requests.values() if r.packed is not None]
        if sum(one.size_bytes for one in packed) >= _MAX_STAGED_BYTES:
            return []
        reading = [r for r in self._requests.values() if r.is_staging]
        room = min(_MAX_STAGED - len(packed) - len(reading), _MAX_READING - len(reading))
        room_of_suspects = _MAX_READING_SUSPECT - sum(map(self._is_suspect, reading))
        chosen: list[Request] = []
        for request in self._in_order():
            if len(chosen) >= room:
                break
            if request.is_staging or request.packed is not None:
                continue
            if self._is_suspect(request):
                if room_of_suspects <= 0:
                    continue
                room_of_suspects -= 1
            chosen.append(request)
        return chosen

    def _is_suspect(self, request: Request) -> bool:
        return self._failures.is_suspect(request.key.tenant)

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
