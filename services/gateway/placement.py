"""Which executor an item goes to.

Rendezvous hashing (Thaler and Ravishankar, 1998) gives each model its own order of executors, so
that a model's adapter is loaded on few of them and an executor's loss moves only its own models;
bounded load (Mirrokni et al., "Consistent Hashing with Bounded Loads", SODA 2018) lets a busy one
spill over. Knows loads and digests, not streams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol, TypeVar

# An executor may hold this times the mean load before its models spill over.
LOAD_FACTOR = 1.25


class Target(Protocol):
    """What placement needs to know of an executor."""

    address: str

    @property
    def load(self) -> int:
        """Tokens in flight."""
        ...

    @property
    def resident(self) -> set[str]:
        """Digests of the versions in device memory."""
        ...


L = TypeVar("L", bound=Target)


@lru_cache(maxsize=65_536)
def score(digest: str, address: str) -> int:
    """Pseudorandom preference of a model for an executor."""
    return int.from_bytes(blake2b(f"{digest} {address}".encode(), digest_size=8).digest())


def ranked(digest: str, targets: Sequence[L]) -> list[L]:
    """The executors in the model's order of preference."""
    return sorted(targets, key=lambda target: score(digest, target.address), reverse=True)


def is_cold(digest: str, targets: Sequence[Target]) -> bool:
    """Whether a model is in no executor's device memory."""
    return not any(digest in target.resident for target in targets)


def choose(digest: str, cost: int, targets: Sequence[L], has_room: Callable[[L], bool]) -> L | None:
    """The executor for an item of `cost` tokens; None if none has room for it.

    The first in the model's order, if its load allows; else one where the model is resident; else
    the next in order.
    """
    if len(targets) == 1:
        return targets[0] if has_room(targets[0]) else None
    bound = LOAD_FACTOR * (sum(target.load for target in targets) + cost) / len(targets)
    best: L | None = None
    best_key: tuple[bool, bool, int] | None = None
    for rank, target in enumerate(ranked(digest, targets)):
        if not has_room(target):
            continue
        is_over = target.load + cost > bound and target.load > 0
        key = (is_over, rank > 0 and digest not in target.resident, rank)
        if best_key is None or key < best_key:
            best, best_key = target, key
    return best
