"""The rules of domain trees by brute force: dictionaries and sets, no arrays, no cleverness.

Selection is tried over every subset size; nothing here is shared with the code under test but the
types of its arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.ngrams import unpack
from services.knowledge_store.tree import NodeCounts, Source

# Comparisons of sums of decimal weights: the order of additions differs.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Told:
    """What one key counts for."""

    weight: float
    is_repeated: bool
    is_exempt: bool
    may_enter: bool


def order(key: int) -> int:
    return int((unpack(np.array([key], np.int64))[0] > 0).sum())


def by_key(source: Source) -> dict[int, float]:
    return dict(zip(source.keys.tolist(), source.weights.tolist(), strict=True))


def combined(sources: Sequence[Source], m: int) -> tuple[dict[int, Told], list[float]]:
    """A shared node's counts and totals."""
    exempt: dict[int, float] = {}
    sent: dict[str, dict[int, float]] = {}
    mass: dict[str, float] = {}
    totals: dict[str, list[float]] = {"": [0.0] * 3}
    for source in sources:
        into = sent.setdefault(source.tenant, {}) if source.tenant else exempt
        for key, weight in by_key(source).items():
            into[key] = into.get(key, 0.0) + weight
        own = totals.setdefault(source.tenant, [0.0] * 3)
        totals[source.tenant] = [a + b for a, b in zip(own, source.totals.tolist(), strict=True)]
        mass[source.tenant] = sum(totals[source.tenant])
    cap = largest_cap({t: mass[t] for t in sent}, mass.get("", 0.0), m)
    factor = {t: min(1.0, cap / mass[t]) if mass[t] else 0.0 for t in sent}
    told = {}
    for key in {*exempt, *(key for own in sent.values() for key in own)}:
        scaled = sorted((own[key] * factor[t] for t, own in sent.items() if key in own))[::-1]
        held = exempt.get(key, 0.0)
        limit = scaled[m - 1] if len(scaled) >= m else held or float("inf")
        raw = held + sum(own.get(key, 0.0) for own in sent.values())
        told[key] = Told(
            weight=held + sum(min(weight, limit) for weight in scaled),
            is_repeated=raw > 1,
            is_exempt=held > 0,
            may_enter=held > 0 or len(scaled) >= m,
        )
    whole = [totals[""][o] + sum(totals[t][o] * factor[t] for t in sent) for o in range(3)]
    return told, whole


def largest_cap(masses: Mapping[str, float], exempt: float, m: int) -> float:
    """The largest c at which no tenant gives more than 1/m of the whole: the bound on c is linear
    between the masses, so c is one of them or solves one of the lines."""
    falling = sorted(masses.values())[::-1]
    lines = range(min(m, len(falling) + 1))
    candidates = [0.0, *falling, *((exempt + sum(falling[j:])) / (m - j) for j in lines)]

    def allows(cap: float) -> bool:
        whole = exempt + sum(min(mass, cap) for mass in falling)
        return cap * (1 - ROUNDING) <= whole / m

    return max(filter(allows, candidates))


def covering(counts: NodeCounts, of_order: int, alpha: float) -> set[int]:
    """The smallest covering set: heaviest first, ties by key, until it covers enough."""
    candidates = [
        (-weight, key)
        for key, weight, its_order, repeated, may in zip(
            counts.keys.tolist(), counts.weights.tolist(), counts.orders.tolist(),
            counts.is_repeated.tolist(), counts.may_enter.tolist(), strict=True,
        )
        if its_order == of_order and may and (repeated or alpha >= 1)
    ]  # fmt: skip
    taken: set[int] = set()
    covered = 0.0
    wanted = alpha * counts.totals[of_order - 1]
    for negative, key in sorted(candidates):
        if alpha < 1 and covered >= wanted * (1 - ROUNDING):
            break
        taken.add(key)
        covered -= negative
    return taken
