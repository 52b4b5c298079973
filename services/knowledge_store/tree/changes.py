"""How far one update may go from the rows a node has towards those it should have.

Knows the bound on changes; does not know why a row is wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from services.common.sorted_keys import (
    BoolArray,
    FloatArray,
    IntArray,
    heaviest_first,
)

# Else a small table could never exchange one row for another.
_MIN_CHANGES = 2


@dataclass(frozen=True)
class ChangeRules:
    """What bounds an update.

    Attributes:
        max_changed: Share of a shared node's rows that one update may change: rows removed are at
            most this share of those there are, and rows removed and added together at most this
            share of the larger of the tables before and wanted.
        min_tenants: m of the sharing rules.
    """

    max_changed: float = 0.05
    min_tenants: int = 3


def bounded(
    added: IntArray,
    add_weights: FloatArray,
    is_free: BoolArray,
    removed: IntArray,
    remove_weights: FloatArray,
    *,
    num_rows: int,
    num_wanted: int,
    room: int,
    max_changed: float,
) -> tuple[BoolArray, BoolArray]:
    """Which of the rows wanted in, and which of those no longer wanted, this update changes.

    Args:
        added: Keys wanted in, `[a]`, with their weights; `is_free` ones are not bounded.
        removed: Keys no longer wanted, `[r]`, with their weights.
        num_rows: Rows there are.
        num_wanted: Rows there should be.
        room: Rows that fit beside those there are.
        max_changed: See ChangeRules.

    Returns:
        Masks bool `[a]` and bool `[r]`. The heaviest come in first, the lightest go first.
    """
    max_changes = max(_MIN_CHANGES, int(max_changed * max(num_rows, num_wanted)))
    max_removed = max(_MIN_CHANGES // 2, int(max_changed * num_rows))
    num_bounded = int((~is_free).sum())
    num_removed = min(len(removed), max_removed, max(max_changes - num_bounded, max_changes // 2))
    lightest = heaviest_first(-removed, remove_weights)[::-1]
    goes = _mask(len(removed), lightest[:num_removed])
    falling = heaviest_first(added, add_weights)
    counted = (~is_free[falling]).cumsum()
    allowed = falling[is_free[falling] | (counted <= max_changes - num_removed)]
    comes = _mask(len(added), allowed[: max(0, room + num_removed)])
    return comes, goes


def _mask(size: int, positions: IntArray) -> BoolArray:
    mask = np.zeros(size, np.bool_)
    mask[positions] = True
    return mask
