"""The rules of domain trees by brute force: dictionaries and sets, no arrays, no cleverness.

Selection is tried over every subset size; nothing here is shared with the code under test but the
types of its arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    totals: dict[str, list[float]] = {"": [0.0] * 3}
    for source in sources:
        into = sent.setdefault(source.tenant, {}) if source.tenant else exempt
        for key, weight in by_key(source).items():
            into[key] = into.get(key, 0.0) + weight
        own = totals.setdefault(source.tenant, [0.0] * 3)
        totals[source.tenant] = [a + b for a, b in zip(own, source.totals.tolist(), strict=True)]
    told = {}
    whole = list(totals[""])
    rest = {t: list(totals[t]) for t in sent}
    for key in {*exempt, *(key for own in sent.values() for key in own)}:
        given = {t: own[key] for t, own in sent.items() if key in own}
        held = exempt.get(key, 0.0)
        may_enter = held > 0 or len(given) >= m
        shared = clipped(list(given.values()), held, m)
        whole[order(key) - 1] += shared
        for tenant, weight in given.items():
            rest[tenant][order(key) - 1] -= weight if may_enter else 0.0
        raw = held + sum(given.values())
        told[key] = Told(held + shared, raw > 1, held > 0, may_enter)
    unnamed = list(totals[""])
    for key, weight in exempt.items():
        unnamed[order(key) - 1] -= weight
    for o in range(3):
        left = [max(0.0, own[o]) for own in rest.values()]
        whole[o] += clipped(left, max(0.0, unnamed[o]), m)
    return told, whole


def clipped(given: list[float], exempt: float, m: int) -> float:
    """What is left of tenants' counts when nobody gives more than the m-th largest, or with fewer
    than m tenants more than 1/m of all, with what is exempt."""
    if len(given) >= m:
        limit = sorted(given)[-m]
    elif not given:
        return 0.0
    else:
        # If one is cut and the others give nothing, c = (exempt + c) / m.
        limit = exempt / (m - 1)
    return sum(min(weight, limit) for weight in given)


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
