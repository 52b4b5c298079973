"""The n-grams that cover a share of a node's occurrences.

Knows counts; does not know budgets, parents or what is stored already.
"""

from __future__ import annotations

import numpy as np

from services.common.sorted_keys import NONE, BoolArray, IntArray, heaviest_first
from services.knowledge_store.tree.counts import NodeCounts

_ROUNDING = 1e-9


def can_be_stored(counts: NodeCounts, alpha: float) -> BoolArray:
    """Which n-grams may have a row: what came once never, unless all is to be covered."""
    return counts.may_enter if alpha >= 1 else counts.may_enter & counts.is_repeated


def cover(counts: NodeCounts, order: int, alpha: float) -> IntArray:
    """The smallest set of n-grams of one order that covers share `alpha` of its occurrences.

    Equal counts are taken in the order of their keys. Where all that may be stored covers less,
    it is all of it. Returns ascending keys.
    """
    is_candidate = can_be_stored(counts, alpha) & (counts.orders == order)
    keys, weights = counts.keys[is_candidate], counts.weights[is_candidate]
    if alpha >= 1 or not len(keys):
        return np.asarray(keys)
    wanted = alpha * counts.totals[order - 1]
    if wanted <= 0:
        return NONE
    falling = heaviest_first(keys, weights)
    covered = np.cumsum(weights[falling])
    num_taken = int(np.searchsorted(covered, wanted * (1 - _ROUNDING))) + 1
    return np.asarray(np.sort(keys[falling[:num_taken]]))
