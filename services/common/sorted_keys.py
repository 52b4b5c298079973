"""Sets of keys as ascending arrays without repeats.

Knows order only; does not know what a key stands for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

_Number = TypeVar("_Number", bound=np.number[Any])

NONE: IntArray = np.empty(0, np.int64)


def contains(held: IntArray, asked: IntArray) -> BoolArray:
    """Which of `asked`, of any shape and in any order, are in `held`: bool, of the same shape.

    `np.isin` would sort `held` at every call.
    """
    if not len(held):
        return np.zeros(asked.shape, np.bool_)
    positions = np.searchsorted(held, asked)
    positions[positions == len(held)] = 0
    return np.asarray(held[positions] == asked)


def without(keys: IntArray, others: IntArray) -> IntArray:
    """The keys that are not among `others`."""
    return keys[~contains(others, keys)]


def union(*sets: IntArray) -> IntArray:
    """The keys of any of the sets."""
    ordered = _merged(sets)
    return ordered[_is_first(ordered)]


def in_two(*sets: IntArray) -> IntArray:
    """The keys of at least two of the sets."""
    ordered = _merged(sets)
    return ordered[1:][~_is_first(ordered)[1:] & _is_first(ordered)[:-1]]


def added_up(keys: IntArray, values: NDArray[_Number]) -> tuple[IntArray, NDArray[_Number]]:
    """Ascending keys without repeats, and for each the sum of its values, of their dtype.

    `keys` may be any order; runs of ascending ones merge in linear time.
    """
    by_key = np.argsort(keys, kind="stable")
    ordered = keys[by_key]
    starts = np.flatnonzero(_is_first(ordered))
    if not len(starts):
        return NONE, values[:0]
    return ordered[starts], np.add.reduceat(values[by_key], starts)


def _merged(sets: Sequence[IntArray]) -> IntArray:
    # np.unique hashes, which is several times slower than merging what is sorted already.
    return np.sort(np.concatenate([NONE, *sets]), kind="stable")


def _is_first(ordered: IntArray) -> BoolArray:
    """Whether each of ascending keys differs from the one before."""
    return np.concatenate([ordered[:1] == ordered[:1], ordered[1:] != ordered[:-1]])


def values_of(
    keys: IntArray, values: NDArray[Any], asked: IntArray, default: float = 0.0
) -> NDArray[Any]:
    """`values` `[len(keys)]` at the keys asked for; `default` where there is none."""
    found = np.full(len(asked), default, values.dtype)
    is_there = contains(keys, asked)
    found[is_there] = values[np.searchsorted(keys, asked[is_there])]
    return found


def heaviest_first(keys: IntArray, weights: NDArray[_Number]) -> NDArray[np.intp]:
    """Positions by falling weight, equal weights by rising key."""
    return np.lexsort((keys, -weights))
