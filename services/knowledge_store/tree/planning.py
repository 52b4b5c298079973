"""The rows of every node of a tree, from the counts of each.

Knows parents, encoders, budgets and what is stored now; does not know where counts come from or
what a row holds. Wants go up the tree (what two siblings want, their parent wants), rows come down
it (a child stores only what its ancestors lack or encode differently).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import numpy as np

from services.common.ids import parent_path
from services.common.ngrams import MAX_ORDER, order_of
from services.common.sorted_keys import (
    NONE,
    BoolArray,
    IntArray,
    contains,
    heaviest_first,
    in_two,
    union,
    values_of,
    without,
)
from services.knowledge_store.tree.changes import ChangeRules, bounded
from services.knowledge_store.tree.counts import NodeCounts
from services.knowledge_store.tree.selection import can_be_stored, cover


@dataclass(frozen=True)
class Node:
    """A node as it is.

    Attributes:
        path: Its path; "" is the root.
        encoder: Names its encoder.
        alpha: Share of occurrences to cover at each order.
        max_rows: Rows that its byte budget pays for.
        rows: Keys of the rows it has, ascending.
        kept: Keys it always has: the root's unigrams. They are within `max_rows`.
        can_change: Whether this plan may change it. Otherwise its rows are what it wants.
        is_bounded: Whether the bound on changes holds: not for a first or a private table.
    """

    path: str
    encoder: str
    alpha: float
    max_rows: int
    rows: IntArray
    kept: IntArray = field(default_factory=lambda: NONE)
    can_change: bool = True
    is_bounded: bool = True


@dataclass(frozen=True)
class OrderChange:
    """What a plan does to a node's rows of one order; as admin.v1.DomainChange."""

    path: str
    order: int
    num_added: int
    num_promoted: int
    num_removed: int
    num_deferred: int
    num_entries: int
    coverage_before: float
    coverage_after: float
    num_withheld: int
    num_over_budget: int
    num_exempt: int
    num_wanted: int


@dataclass(frozen=True)
class NodePlan:
    """What a node should hold: all keys ascending, and what that changes."""

    path: str
    rows: IntArray
    added: IntArray
    removed: IntArray
    changes: tuple[OrderChange, ...]


def plan_tree(
    nodes: Sequence[Node], counts: Mapping[str, NodeCounts], rules: ChangeRules
) -> dict[str, NodePlan]:
    """A plan for every node that may change, by path.

    Args:
        nodes: Parents before children; every node's parent is among them but the root's.
        counts: Of every node that may change, by path, its sub-domains' included. They are asked
            for from the leaves to the root, then from the root to the leaves, one at a time.
        rules: What bounds the update.
    """
    wants, risen = _wants(nodes, counts)
    by_path = {node.path: node for node in nodes}
    rows = {node.path: node.rows for node in nodes}
    plans: dict[str, NodePlan] = {}
    for node in nodes:
        if not node.can_change:
            continue
        above = [(by_path[path], rows[path]) for path in _ancestors(node.path)]
        plan = _plan_node(node, counts[node.path], rules, above, wants[node.path], risen[node.path])
        plans[node.path], rows[node.path] = plan, plan.rows
    return plans


def _plan_node(
    node: Node,
    own: NodeCounts,
    rules: ChangeRules,
    above: Sequence[tuple[Node, IntArray]],
    wanted: IntArray,
    risen: IntArray,
) -> NodePlan:
    """One node's plan, given its ancestors (nearest first) and the rows they are to have."""
    target = _Target(node, own, rules, [(ancestor.encoder, rows) for ancestor, rows in above])
    outcome = target.rows(wanted)
    after = outcome.after
    before_path = [node.rows, *(ancestor.rows for ancestor, _ in above)]
    after_path = [after, *(rows for _, rows in above)]
    added, removed = without(after, node.rows), without(node.rows, after)
    moves = _Moves(
        added=added, promoted=added[contains(risen, added)], removed=removed,
        deferred=outcome.deferred, entries=after, over_budget=outcome.unpaid,
        withheld=own.keys[own.is_repeated & ~own.may_enter],
        exempt=added[target.is_exempt(added)], wanted=outcome.wanted,
    )  # fmt: skip
    changes = _changes(node.path, moves, _coverage(own, before_path), _coverage(own, after_path))
    return NodePlan(node.path, after, added, removed, changes)


def _ancestors(path: str) -> list[str]:
    """Paths from the parent to the root."""
    above = []
    while path:
        path = parent_path(path)
        above.append(path)
    return above


def _wants(
    nodes: Sequence[Node], counts: Mapping[str, NodeCounts]
) -> tuple[dict[str, IntArray], dict[str, IntArray]]:
    """What each node wants whatever it costs, and what of that two or more children want."""
    wants: dict[str, IntArray] = {}
    risen: dict[str, IntArray] = {}
    children: dict[str, list[Node]] = {}
    for node in reversed(nodes):
        if node.path:
            children.setdefault(parent_path(node.path), []).append(node)
        if not node.can_change:
            wants[node.path], risen[node.path] = node.rows, NONE
            continue
        asked = [
            wants[child.path]
            for child in children.get(node.path, ())
            if child.encoder == node.encoder
        ]
        wants[node.path], risen[node.path] = _wants_of(node, counts[node.path], in_two(*asked))
    return wants, risen


def _wants_of(node: Node, own: NodeCounts, shared: IntArray) -> tuple[IntArray, IntArray]:
    """What one node wants, and what of that is of `shared`, which two of its children want."""
    # The root's unigrams are all kept, whatever was counted.
    orders = range(2 if not node.path else 1, MAX_ORDER + 1)
    can_rise = values_of(own.keys, can_be_stored(own, node.alpha), shared).astype(np.bool_)
    risen = shared[can_rise]
    covered = [cover(own, order, node.alpha) for order in orders]
    return union(node.kept, risen, *covered), risen


class _Outcome(NamedTuple):
    """Keys after an update, those whose change has to wait, those wanted that the budget does not
    pay for, and those that the node should have in the end."""

    after: IntArray
    deferred: IntArray
    unpaid: IntArray
    wanted: IntArray


@dataclass(frozen=True)
class _Target:
    """Where one node's rows go, given its ancestors' (nearest first: encoder and rows)."""

    node: Node
    counts: NodeCounts
    rules: ChangeRules
    above: list[tuple[str, IntArray]]

    def rows(self, wanted: IntArray) -> _Outcome:
        """What one update makes of the node, given what it wants whatever it costs."""
        node = self.node
        missing = wanted[~self._is_held(wanted)]
        target = self._affordable(missing)
        unpaid = without(missing, target)
        if not node.is_bounded:
            return _Outcome(target, NONE, unpaid, target)
        added, gone = without(target, node.rows), without(node.rows, target)
        # What an ancestor answers with the same bits changes nothing when it goes.
        is_idle = self._is_held(gone)
        idle, removed = gone[is_idle], gone[~is_idle]
        comes, goes = bounded(
            added, self._weights(added), self.is_exempt(added), removed, self._weights(removed),
            num_rows=len(node.rows), num_wanted=len(target),
            room=node.max_rows - len(node.rows) + len(idle), max_changed=self.rules.max_changed,
        )  # fmt: skip
        left = without(without(node.rows, idle), removed[goes])
        deferred = union(added[~comes], removed[~goes])
        return _Outcome(union(left, added[comes]), deferred, unpaid, target)

    def _is_held(self, keys: IntArray) -> BoolArray:
        """Which keys the nearest ancestor that has them encodes as this node would."""
        is_held = np.zeros(len(keys), np.bool_)
        is_open = np.ones(len(keys), np.bool_)
        for encoder, rows in self.above:
            is_found = is_open & contains(rows, keys)
            if encoder == self.node.encoder:
                is_held |= is_found
            is_open &= ~is_found
        return is_held

    def _affordable(self, keys: IntArray) -> IntArray:
        """The heaviest that the budget pays for, what is always kept first."""
        kept = keys[contains(self.node.kept, keys)]
        others = without(keys, kept)
        num_others = max(0, self.node.max_rows - len(kept))
        if len(others) <= num_others:
            return keys
        falling = heaviest_first(others, self._weights(others))
        return union(kept, others[falling[:num_others]])

    def _weights(self, keys: IntArray) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        return values_of(self.counts.keys, self.counts.weights, keys)

    def is_exempt(self, keys: IntArray) -> BoolArray:
        return values_of(self.counts.keys, self.counts.is_exempt, keys, default=False)


def _coverage(counts: NodeCounts, tables: Sequence[IntArray]) -> list[float]:
    """Share of the occurrences of order 1, 2, 3 that one of the tables has a row for."""
    is_covered = np.zeros(len(counts.keys), np.bool_)
    for rows in tables:
        is_covered |= contains(rows, counts.keys)
    covered = np.bincount(counts.orders[is_covered], counts.weights[is_covered], MAX_ORDER + 1)
    return [
        float(min(1.0, covered[order] / total)) if (total := counts.totals[order - 1]) > 0 else 0.0
        for order in range(1, MAX_ORDER + 1)
    ]


@dataclass(frozen=True)
class _Moves:
    """Keys by what a plan does with them; named as the counts of OrderChange are."""

    added: IntArray
    promoted: IntArray
    removed: IntArray
    deferred: IntArray
    entries: IntArray
    withheld: IntArray
    over_budget: IntArray
    exempt: IntArray
    wanted: IntArray


def _changes(
    path: str, moves: _Moves, before: list[float], after: list[float]
) -> tuple[OrderChange, ...]:
    """A change for every order of which anything is to tell."""
    by_order = {
        f"num_{of.name}": np.bincount(order_of(getattr(moves, of.name)), minlength=MAX_ORDER + 1)
        for of in fields(moves)
    }
    return tuple(
        OrderChange(
            path,
            order,
            coverage_before=before[order - 1],
            coverage_after=after[order - 1],
            **{name: int(numbers[order]) for name, numbers in by_order.items()},
        )
        for order in range(1, MAX_ORDER + 1)
        if any(numbers[order] for numbers in by_order.values())
    )
