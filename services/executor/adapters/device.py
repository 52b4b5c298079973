"""The device tier: which adapters lie in the arena, who may leave, and who may come.

Knows recency, frequency and claims; loads nothing. Not thread-safe: the store's lock guards it.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from services.executor.adapters.arena import Arena, IntArray
from services.executor.adapters.slots import Key, Slot

_HALF_LIFE_S = 30.0
_CLAIM_S = 2.0


@dataclass(slots=True)
class _Resident:
    """A slot with the history that decides whether it stays.

    Attributes:
        heat: log2 of the uses so far, each halved every half-life, referred to time 0 (LRFU: Lee
            et al. 2001). It moves only with a use, so any two can be compared at any time.
        claimed_until: Someone waits for it until then: it is not evicted before it was of use.
        is_leaving: It is dropped at its last release.
    """

    slot: Slot
    heat: float
    claimed_until: float
    is_leaving: bool = False


class DeviceTier:
    """Adapters by key, in one arena."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._residents: dict[Key, _Resident] = {}
        self.pinned: frozenset[Key] = frozenset()

    def __contains__(self, key: object) -> bool:
        return key in self._residents

    def __len__(self) -> int:
        return len(self._residents)

    @property
    def keys(self) -> list[Key]:
        return list(self._residents)

    @property
    def num_rows_used(self) -> int:
        return self._arena.capacity - self._arena.num_free

    def acquire(self, key: Key) -> Slot | None:
        """The slot with one more user; None if it is not here."""
        resident = self._residents.get(key)
        if resident is None:
            return None
        tick = time.monotonic() / _HALF_LIFE_S
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

    def make_room(self, num_rows: int, *, is_claimed: bool) -> IntArray | None:
        """Rows for an adapter that comes, by evicting the coolest that nobody uses.

        Adapters in use, pinned or claimed stay. A mere hint (not `is_claimed`) evicts nothing that
        is hotter than a single use just now. Nothing is evicted if that would not suffice.
        """
        missing = num_rows - self._arena.num_free
        if missing > 0:
            victims: list[Key] = []
            for key, resident in self._idle():
                if missing <= 0:
                    break
                if not is_claimed and resident.heat > time.monotonic() / _HALF_LIFE_S:
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
        self._residents[slot.key] = _Resident(slot, now / _HALF_LIFE_S, claim)

    def drop(self, key: Key) -> None:
        """Take an adapter out, if it is here: now, or when its last user releases it."""
        resident = self._residents.get(key)
        if resident is None:
            return
        if resident.slot.num_users:
            resident.is_leaving = True
            return
        del self._residents[key]
        self._arena.give(resident.slot.numbers)

    def _idle(self) -> list[tuple[Key, _Resident]]:
        """Those that may leave, coolest first."""
        now = time.monotonic()
        idle = [
            (key, resident)
            for key, resident in self._residents.items()
            if not resident.slot.num_users
            and resident.claimed_until < now
            and key not in self.pinned
        ]
        return sorted(idle, key=lambda pair: pair[1].heat)
