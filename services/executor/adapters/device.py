"""The device tier: which adapters lie in the arena, who may leave, and who may come.

Knows tenants, recency, frequency and claims; loads nothing. Not thread-safe: the store's lock
guards it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from services.executor.adapters.arena import Arena, IntArray
from services.executor.adapters.slots import Key, Slot

logger = logging.getLogger(__name__)

_HALF_LIFE_S = 30.0
_CLAIM_S = 2.0
_RECENT_S = 10.0


@dataclass(slots=True)
class _Resident:
    """A slot with the history that decides whether it stays.

    Attributes:
        heat: log2 of the uses so far, each halved every half-life, referred to time 0 (LRFU: Lee
            et al. 2001). It moves only with a use, so any two can be compared at any time.
        claimed_until: Someone waits for it until then: it is not evicted before it was of use.
        used_at: The last use, or when it came.
        is_leaving: It is dropped at its last release.
        is_pinned: It is not evicted.
    """

    slot: Slot
    heat: float
    claimed_until: float
    used_at: float
    is_leaving: bool = False
    is_pinned: bool = False


class DeviceTier:
    """Adapters by key, in one arena.

    Pinned ones take at most half of it: any tenant may pin, and the others' adapters need room too.
    A pin beyond that is ignored until there is room for it.

    A tenant that cycles through many models evicts its own, or what nobody used of late: what a
    tenant with no more rows than itself just used stays.
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._residents: dict[Key, _Resident] = {}
        self._wanted: frozenset[Key] = frozenset()  # to be pinned
        self._ignored: set[Key] = set()  # those wanted in vain, told once
        self._num_rows_pinned = 0
        self._num_rows_of: Counter[str] = Counter()  # by tenant

    def __contains__(self, key: object) -> bool:
        return key in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(key.digest for key in self._residents)

    @property
    def num_rows_used(self) -> int:
        return self._arena.capacity - self._arena.num_free

    def num_rows_of(self, tenant: str) -> int:
        """Rows that a tenant's adapters take."""
        return self._num_rows_of[tenant]

    def acquire(self, key: Key) -> Slot | None:
        """The slot with one more user; None if it is not here."""
        resident = self._residents.get(key)
        if resident is None:
            return None
        resident.used_at = time.monotonic()
        tick = resident.used_at / _HALF_LIFE_S
        high, low = max(resident.heat, tick), min(resident.heat, tick)
        resident.heat = high + math.log2(1 + 2 ** (low - high))
        resident.claimed_until = 0.0
        resident.slot.num_users += 1
        return resident.slot

    def release(self, slot: Slot) -> None:
        """One user less."""
        if slot.num_users < 1:
            raise ValueError(f"{slot.key} is released more often than acquired")
        slot.num_users -= 1
        resident = self._residents.get(slot.key)
        if resident is not None and resident.is_leaving:
            self.drop(slot.key)

    def pin(self, keys: Iterable[Key]) -> None:
        """Keep these, as they come and as far as they fit; those of the last call may leave."""
        self._wanted = frozenset(keys)
        self._ignored &= self._wanted
        for key, resident in self._residents.items():
            if resident.is_pinned and key not in self._wanted:
                self._unpin(resident)
        for key in self._wanted & self._residents.keys():
            self._pin(key, self._residents[key])

    def takes_pin(self, key: Key, num_rows: int) -> bool:
        """Whether an adapter that comes would be pinned."""
        return key in self._wanted and self._num_rows_pinned + num_rows <= self._arena.capacity // 2

    def can_ever_hold(self, num_rows: int) -> bool:
        """Whether an adapter fits once all that is not pinned has left."""
        return num_rows <= self._arena.capacity - self._num_rows_pinned

    def make_room(self, num_rows: int, tenant: str | None, *, is_hint: bool) -> IntArray | None:
        """Rows for an adapter that comes, by evicting the coolest that nobody uses.

        Of other tenants' those stay that `_may_take` says, unless `tenant` is None.

        Adapters in use, pinned or claimed stay. A mere hint evicts nothing that is hotter than a
        single use just now. Nothing is evicted if that would not suffice.
        """
        missing = num_rows - self._arena.num_free
        if missing > 0:
            victims: list[Key] = []
            for key, resident in self._idle(tenant):
                if missing <= 0:
                    break
                if is_hint and resident.heat > time.monotonic() / _HALF_LIFE_S:
                    break
                victims.append(key)
                missing -= len(resident.slot.numbers)
            if missing > 0:
                return None
            for key in victims:
                self.drop(key)
        return self._arena.take(num_rows)

    def put(self, slot: Slot, *, is_claimed: bool) -> None:
        """A slot whose rows are written becomes resident."""
        now = time.monotonic()
        claim = now + _CLAIM_S if is_claimed else 0.0
        resident = self._residents[slot.key] = _Resident(slot, now / _HALF_LIFE_S, claim, now)
        self._num_rows_of[slot.key.tenant] += len(slot.numbers)
        if slot.key in self._wanted:
            self._pin(slot.key, resident)

    def drop(self, key: Key) -> None:
        """Take an adapter out, if it is here: now, or when its last user releases it."""
        resident = self._residents.get(key)
        if resident is None:
            return
        self._unpin(resident)
        if resident.slot.num_users:
            resident.is_leaving = True
            return
        del self._residents[key]
        self._num_rows_of[key.tenant] -= len(resident.slot.numbers)
        if not self._num_rows_of[key.tenant]:
            del self._num_rows_of[key.tenant]
        self._arena.give(resident.slot.numbers)

    def _pin(self, key: Key, resident: _Resident) -> None:
        num_rows = len(resident.slot.numbers)
        if resident.is_pinned or resident.is_leaving:
            return
        if self.takes_pin(key, num_rows):
            resident.is_pinned = True
            self._num_rows_pinned += num_rows
            self._ignored.discard(key)
        elif key not in self._ignored:
            self._ignored.add(key)
            logger.warning(
                "a pin is ignored: pinned adapters fill their half of the device memory",
                extra={"key": str(key)},
            )

    def _unpin(self, resident: _Resident) -> None:
        if resident.is_pinned:
            resident.is_pinned = False
            self._num_rows_pinned -= len(resident.slot.numbers)

    def _idle(self, tenant: str | None) -> list[tuple[Key, _Resident]]:
        """Those that may leave for a tenant's adapter, coolest first."""
        now = time.monotonic()
        idle = [
            (key, resident)
            for key, resident in self._residents.items()
            if not resident.slot.num_users
            and resident.claimed_until < now
            and not resident.is_pinned
            and self._may_take(tenant, key.tenant, resident, now)
        ]
        return sorted(idle, key=lambda pair: pair[1].heat)

    def _may_take(self, tenant: str | None, owner: str, resident: _Resident, now: float) -> bool:
        """Whether an owner's adapter may leave for a tenant's."""
        if tenant is None or owner == tenant or resident.used_at < now - _RECENT_S:
            return True
        return self._num_rows_of[owner] > self._num_rows_of[tenant]
