"""A node's counts: the sum of its sources', as far as the sharing rules let them in.

Knows tenants, exempt corpora and the rules between them; does not know half-lives (weights come
decayed) or tables.

In a node that tenants share (`is_private` false), with m = `min_tenants`:

- A tenant's mass is scaled down to 1/m of the node's counted mass, exempt mass included: nobody
  floods a node.
- An n-gram's count takes from each tenant at most what the m-th largest sender gave (if fewer than
  m sent it: what the exempt corpora hold of it), so that one tenant cannot raise it alone.
- An n-gram may enter only if an exempt corpus holds it or m tenants sent it: nobody's own text can
  be read off a shared table.

A private node takes its one tenant's counts as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.ngrams import MAX_ORDER, order_of
from services.knowledge_store.tree.sorted_keys import (
    NONE,
    BoolArray,
    FloatArray,
    IntArray,
    added_up,
    union,
    values_of,
)


@dataclass(frozen=True)
class Source:
    """What one corpus, or one tenant's traffic, counted.

    Attributes:
        tenant: Whose it is; empty for a corpus that is exempt from the sharing rules.
        keys: int64 `[n]`, ascending, distinct.
        weights: float64 `[n]`, decayed occurrences.
        totals: Occurrences by order 1, 2, 3, those of n-grams that `keys` leave out included.
    """

    tenant: str
    keys: IntArray
    weights: FloatArray
    totals: FloatArray


@dataclass(frozen=True)
class NodeCounts:
    """What a node's tables are chosen from.

    Attributes:
        keys: int64 `[n]`, ascending.
        weights: float64 `[n]`, clipped occurrences.
        orders: int64 `[n]`.
        is_repeated: bool `[n]`: it came more than once, before any clipping.
        is_exempt: bool `[n]`: an exempt corpus (or, in a private node, its tenant) holds it.
        may_enter: bool `[n]`: the sharing rules let it into the node.
        totals: float64 `[3]`: occurrences by order, n-grams that no source names included.
    """

    keys: IntArray
    weights: FloatArray
    orders: IntArray
    is_repeated: BoolArray
    is_exempt: BoolArray
    may_enter: BoolArray
    totals: FloatArray

    @property
    def num_tokens(self) -> float:
        """Occurrences of n-grams' centres: as many as there are tokens."""
        return float(self.totals.max(initial=0.0))


def combine(sources: Sequence[Source], *, is_private: bool, min_tenants: int) -> NodeCounts:
    """Add up sources under the sharing rules."""
    free = [source for source in sources if is_private or not source.tenant]
    exempt_keys, exempt = _sum(free)
    exempt_totals = sum((source.totals for source in free), np.zeros(MAX_ORDER))
    tenants = {} if is_private else _by_tenant(sources)
    factors = mass_factors(
        {tenant: float(source.totals.sum()) for tenant, source in tenants.items()},
        exempt_mass=float(exempt_totals.sum()),
        min_tenants=min_tenants,
    )
    keys = union(exempt_keys, *(source.keys for source in tenants.values()))
    held = values_of(exempt_keys, exempt, keys)
    raw = held.copy()
    for source in tenants.values():
        raw[np.searchsorted(keys, source.keys)] += source.weights
    shared, num_senders = _clipped(keys, held, tenants, factors, min_tenants)
    is_exempt = held > 0
    scaled = (source.totals * factors[name] for name, source in tenants.items())
    return NodeCounts(
        keys=keys,
        weights=held + shared,
        orders=order_of(keys),
        is_repeated=raw > 1,
        is_exempt=is_exempt,
        may_enter=is_exempt | (num_senders >= min_tenants),
        totals=sum(scaled, exempt_totals),
    )


def mass_factors(
    masses: Mapping[str, float], *, exempt_mass: float, min_tenants: int
) -> dict[str, float]:
    """What each tenant's counts are multiplied with, so that its mass is at most 1/m of the whole.

    The cap is the largest c with c = (exempt + sum of min(mass, c)) / m. With fewer than m tenants
    and nothing exempt it is 0: then nothing they sent could enter anyway.
    """
    falling = sorted(masses.values(), reverse=True)
    rest = exempt_mass + sum(falling)
    cap = 0.0
    for num_capped in range(min_tenants):
        cap = rest / (min_tenants - num_capped)
        if num_capped >= len(falling) or falling[num_capped] <= cap:
            break
        rest = exempt_mass + sum(falling[num_capped + 1 :])
    return {name: min(1.0, cap / mass) if mass > 0 else 0.0 for name, mass in masses.items()}


def _by_tenant(sources: Iterable[Source]) -> dict[str, Source]:
    of: dict[str, list[Source]] = {}
    for source in sources:
        if source.tenant:
            of.setdefault(source.tenant, []).append(source)
    return {
        tenant: Source(tenant, *_sum(own), sum((s.totals for s in own), np.zeros(MAX_ORDER)))
        for tenant, own in of.items()
    }


def _sum(sources: Sequence[Source]) -> tuple[IntArray, FloatArray]:
    """Keys of any source, and their weights added up."""
    if not sources:
        return NONE, np.empty(0)
    if len(sources) == 1:
        return sources[0].keys, sources[0].weights
    return added_up(
        np.concatenate([source.keys for source in sources]),
        np.concatenate([source.weights for source in sources]),
    )


def _clipped(
    keys: IntArray,
    exempt: FloatArray,
    tenants: Mapping[str, Source],
    factors: Mapping[str, float],
    min_tenants: int,
) -> tuple[FloatArray, IntArray]:
    """The tenants' clipped weights of each key, and how many tenants sent it; `[len(keys)]`."""
    if not tenants:
        return np.zeros(len(keys)), np.zeros(len(keys), np.int64)
    positions = np.concatenate([np.searchsorted(keys, s.keys) for s in tenants.values()])
    weights = np.concatenate([s.weights * factors[name] for name, s in tenants.items()])
    falling = np.lexsort((-weights, positions))
    positions, weights = positions[falling], weights[falling]
    num_senders = np.bincount(positions, minlength=len(keys)).astype(np.int64)
    starts = np.cumsum(num_senders) - num_senders
    is_enough = num_senders >= min_tenants
    # Fewer senders than m: nobody's count exceeds the corpora's. Without one it cannot enter, and
    # counts only for what the table does not cover.
    limits = np.where(exempt > 0, exempt, np.inf)
    limits[is_enough] = weights[starts[is_enough] + min_tenants - 1]
    clipped = np.minimum(weights, limits[positions])
    return _at_positions(positions, clipped, len(keys)), num_senders


def _at_positions(positions: IntArray, weights: FloatArray, size: int) -> FloatArray:
    """Weights that share a position added up: float64 `[size]`."""
    return np.asarray(np.bincount(positions, weights, minlength=size), np.float64)
