"""A node's counts: the sum of its sources', as far as the sharing rules let them in.

Knows tenants, exempt corpora and the rules between them; does not know half-lives (weights come
decayed) or tables.

In a node that tenants share (`is_private` false), with m = `min_tenants`:

- An n-gram may enter only if an exempt corpus holds it or m tenants sent it: nobody's own text can
  be read off a shared table.
- An n-gram's count takes from each tenant at most what the m-th largest sender gave, or if fewer
  than m sent it what makes it 1/m of the count together with what exempt corpora hold. So nobody
  gives more than 1/m of any count, or of the node's mass, however much it sends.
- What a tenant sent of n-grams that may not enter counts for what is left uncovered, as if it were
  one n-gram of each order: clipped in the same way, against what corpora do not name.

A private node takes its one tenant's counts as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from services.common.ngrams import MAX_ORDER, order_of
from services.common.sorted_keys import (
    NONE,
    BoolArray,
    FloatArray,
    IntArray,
    added_up,
    contains,
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
        weights: float64 `[n]`, clipped occurrences; of n-grams that may not enter none.
        orders: int64 `[n]`.
        is_repeated: bool `[n]`: it came more than once, before any clipping.
        is_exempt: bool `[n]`: an exempt corpus (or, in a private node, its tenant) holds it.
        may_enter: bool `[n]`: the sharing rules let it into the node.
        totals: float64 `[3]`: occurrences by order, clipped too, n-grams that no source names or
            that may not enter included.
    """

    keys: IntArray
    weights: FloatArray
    orders: IntArray
    is_repeated: BoolArray
    is_exempt: BoolArray
    may_enter: BoolArray
    totals: FloatArray


def combine(sources: Sequence[Source], *, is_private: bool, min_tenants: int) -> NodeCounts:
    """Add up sources under the sharing rules."""
    free = [source for source in sources if is_private or not source.tenant]
    corpora = Source("", *_sum(free), _totals(free))
    tenants = [] if is_private else _by_tenant(sources)
    keys = union(corpora.keys, *(source.keys for source in tenants))
    orders = order_of(keys)
    exempt = values_of(corpora.keys, corpora.weights, keys)
    raw, num_senders = exempt.copy(), np.zeros(len(keys), np.int64)
    for source in tenants:
        positions = np.searchsorted(keys, source.keys)
        raw[positions] += source.weights
        num_senders[positions] += 1
    may_enter = (exempt > 0) | (num_senders >= min_tenants)
    shared = _clipped(keys, exempt, num_senders, tenants, min_tenants)
    return NodeCounts(
        keys=keys,
        weights=exempt + shared,
        orders=orders,
        is_repeated=raw > 1,
        is_exempt=exempt > 0,
        may_enter=may_enter,
        totals=corpora.totals
        + np.bincount(orders, shared, minlength=MAX_ORDER + 1)[1:]
        + _clipped_rests(corpora, keys[may_enter], tenants, min_tenants),
    )


def _clipped(
    keys: IntArray,
    exempt: FloatArray,
    num_senders: IntArray,
    tenants: Sequence[Source],
    min_tenants: int,
) -> FloatArray:
    """What the tenants give to each key's count: float64 `[len(keys)]`."""
    if not tenants:
        return np.zeros(len(keys))
    positions = np.concatenate([np.searchsorted(keys, source.keys) for source in tenants])
    weights = np.concatenate([source.weights for source in tenants])
    falling = np.lexsort((-weights, positions))
    positions, weights = positions[falling], weights[falling]
    starts = np.cumsum(num_senders) - num_senders
    is_enough = num_senders >= min_tenants
    limits = _limit_of_few(exempt, min_tenants)
    limits[is_enough] = weights[starts[is_enough] + min_tenants - 1]
    given = np.minimum(weights, limits[positions])
    return np.asarray(np.bincount(positions, given, minlength=len(keys)), np.float64)


def _clipped_rests(
    exempt: Source, entering: IntArray, tenants: Sequence[Source], min_tenants: int
) -> FloatArray:
    """What the tenants sent by order of n-grams that are not `entering`: float64 `[3]`."""
    if not tenants:
        return np.zeros(MAX_ORDER)
    falling = np.sort(np.stack([_rest(source, entering) for source in tenants]), axis=0)[::-1]
    if len(tenants) >= min_tenants:
        limits = falling[min_tenants - 1]
    else:
        limits = _limit_of_few(_rest(exempt, entering), min_tenants)
    return np.asarray(np.minimum(falling, limits).sum(axis=0))


def _limit_of_few(exempt: FloatArray, min_tenants: int) -> FloatArray:
    """What each of fewer than m tenants may give: 1/m of the sum if it is alone, else less."""
    return exempt / max(min_tenants - 1, 1)


def _rest(source: Source, entering: IntArray) -> FloatArray:
    """A source's occurrences by order of n-grams that are not `entering`: float64 `[3]`."""
    enters = contains(entering, source.keys)
    orders, weights = order_of(source.keys[enters]), source.weights[enters]
    return np.maximum(source.totals - np.bincount(orders, weights, MAX_ORDER + 1)[1:], 0.0)


def _by_tenant(sources: Iterable[Source]) -> list[Source]:
    """One source a tenant."""
    of: dict[str, list[Source]] = {}
    for source in sources:
        if source.tenant:
            of.setdefault(source.tenant, []).append(source)
    return [Source(tenant, *_sum(own), _totals(own)) for tenant, own in of.items()]


def _totals(sources: Iterable[Source]) -> FloatArray:
    return sum((source.totals for source in sources), np.zeros(MAX_ORDER))


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
