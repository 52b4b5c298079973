"""Tables for a tree's nodes: as the store chooses them, and what they are held against.

Knows counts and keys; does not know how well a table answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.trees.lookups import Tables
from benchmarks.trees.texts import ROOT
from services.common.ids import parent_path
from services.common.ngrams import IntArray, order_of
from services.common.sorted_keys import (
    NONE,
    FloatArray,
    contains,
    heaviest_first,
    union,
    values_of,
)
from services.knowledge_store.tree import ChangeRules, Node, NodeCounts, plan_tree
from services.knowledge_store.tree.selection import can_be_stored

ROW_BYTES = 8 + 2 * 384  # a key and a MiniLM vector in float16
UNLIMITED = 1 << 40
_ENCODER = "one"
_ORDERS = (1, 2, 3)

# What each of a node's keys is worth: (path, `[n]`) to `[n]`.
Worth = Callable[[str, IntArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Choice:
    """What the store's selection is told."""

    alpha: float = 0.5
    max_rows: int = UNLIMITED


def selected(
    nodes: Sequence[str], counts: Mapping[str, NodeCounts], root: IntArray, choice: Choice
) -> dict[str, IntArray]:
    """First tables of every node below a root that stays as it is: the store's own code."""
    tree = [
        Node(
            path=node,
            encoder=_ENCODER,
            alpha=choice.alpha,
            max_rows=choice.max_rows,
            rows=root if node == ROOT else NONE,
            can_change=node != ROOT,
            is_bounded=False,
        )
        for node in nodes
    ]
    plans = plan_tree(tree, counts, ChangeRules())
    return {ROOT: root} | {path: plan.rows for path, plan in plans.items()}


def leaves_alone(
    leaves: Sequence[str], counts: Mapping[str, NodeCounts], root: IntArray, choice: Choice
) -> dict[str, IntArray]:
    """Each leaf right below the root, nothing between them: what a flat store would hold."""
    tables = {ROOT: root}
    for leaf in leaves:
        flat = {"leaf": counts[leaf]}
        tables[leaf] = selected([ROOT, "leaf"], flat, root, choice)["leaf"]
    return tables


def one_table(
    leaves: Sequence[str], counts: NodeCounts, root: IntArray, choice: Choice
) -> dict[str, IntArray]:
    """One table below the root for everybody, from all counts together."""
    rows = selected([ROOT, "all"], {"all": counts}, root, choice)["all"]
    return {ROOT: union(root, rows)} | dict.fromkeys(leaves, NONE)


def rows_below_root(tables: Tables, root: IntArray) -> int:
    """Rows that a set of tables holds beside the root's own."""
    beside = len(tables[ROOT]) - len(root)
    return beside + sum(len(rows) for path, rows in tables.items() if path != ROOT)


def as_large(like: Tables, candidates: Mapping[str, IntArray], worth: Worth) -> dict[str, IntArray]:
    """Tables with as many rows of each order in each node as `like`: of the node's candidates that
    no ancestor holds, those worth most."""
    made = {ROOT: like[ROOT]}
    for path in sorted(path for path in like if path != ROOT):
        fresh = _not_above(candidates[path], path, made)
        made[path] = union(*_heaviest(fresh, worth(path, fresh), _sizes(like[path])))
    return made


def counted(counts: Mapping[str, NodeCounts]) -> Worth:
    """An n-gram is worth what its node counted."""

    def worth(path: str, keys: IntArray) -> FloatArray:
        return values_of(counts[path].keys, counts[path].weights, keys)

    return worth


def drawn(seed: int) -> Worth:
    """An n-gram is worth what chance says."""
    chance = np.random.default_rng(seed)
    return lambda _path, keys: chance.random(len(keys))


def storable(counts: Mapping[str, NodeCounts], alpha: float) -> dict[str, IntArray]:
    """The n-grams among which the store chooses, by node."""
    return {path: own.keys[can_be_stored(own, alpha)] for path, own in counts.items()}


def _sizes(rows: IntArray) -> dict[int, int]:
    numbers = np.bincount(order_of(rows), minlength=4)
    return {order: int(numbers[order]) for order in _ORDERS}


def _heaviest(keys: IntArray, worth: FloatArray, sizes: dict[int, int]) -> list[IntArray]:
    orders = order_of(keys)
    chosen = [NONE]
    for order, size in sizes.items():
        places = np.flatnonzero(orders == order)
        falling = places[heaviest_first(keys[places], worth[places])]
        chosen.append(keys[falling[:size]])
    return chosen


def _not_above(keys: IntArray, path: str, tables: Tables) -> IntArray:
    while path:
        path = parent_path(path)
        if path in tables:
            keys = keys[~contains(tables[path], keys)]
    return keys
