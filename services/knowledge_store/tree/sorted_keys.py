"""Sets of keys as ascending arrays without repeats.

Knows order only; does not know what a key stands for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

NONE: IntArray = np.empty(0, np.int64)


def contains(held: IntArray, asked: IntArray) -> BoolArray:
    """Which of `asked` `[n]`, in any order, are in `held`: bool `[n]`."""
    if not len(held):
        return np.zeros(len(asked), np.bool_)
    positions = np.searchsorted(held, asked)
    positions[positions == len(held)] = 0
    return np.asarray(held[positions] == asked)


def without(keys: IntArray, others: IntArray) -> IntArray:
    """The keys that are not among `others`."""
    return keys[~contains(others, keys)]


def union(*sets: IntArray) -> IntArray:
    """The keys of any of the sets."""
    if not sets:
        return NONE
    return np.unique(np.concatenate(sets))


def values_of(
    keys: IntArray, values: NDArray[Any], asked: IntArray, default: float = 0.0
) -> NDArray[Any]:
    """`values` `[len(keys)]` at the keys asked for; `default` where there is none."""
    found = np.full(len(asked), default, values.dtype)
    is_there = contains(keys, asked)
    found[is_there] = values[np.searchsorted(keys, asked[is_there])]
    return found


def heaviest_first(keys: IntArray, weights: FloatArray) -> NDArray[np.intp]:
    """Positions by falling weight, equal weights by rising key."""
    return np.lexsort((keys, -weights))
