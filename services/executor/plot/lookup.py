"""Rows for the tokens of a batch whose rows read different tables.

Knows tables and their nodes, most of which many tables share; does not know tenants or misses.

A few large groups are searched table by table, each token no further than it must. Many small ones
would spend their time on calls, not on probes: there every node is asked once, for all tokens that
have it on their path and for all n-grams that could answer, and the best answer stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common import ngrams
from services.common.ngrams import IntArray
from services.executor.plot.index import ABSENT
from services.executor.plot.node import NodeTable
from services.executor.plot.staging import Staging
from services.executor.plot.table import BACKOFF, Found, Table

_SMALL = 256  # tokens a table: with fewer, calls cost more than needless probes
_RANKS = 16  # more than a path has nodes
_NOTHING = len(BACKOFF) * _RANKS


@dataclass(frozen=True, slots=True)
class Group:
    """Tokens that read one table: places int64 `[n]` in the batch."""

    table: Table
    places: IntArray


@dataclass(frozen=True, slots=True)
class Located:
    """Where the rows of a batch's tokens are.

    Attributes:
        nodes: Every node of the groups' tables, once.
        found: As of a table, but of all tokens, and with places in `nodes`.
    """

    nodes: Sequence[NodeTable]
    found: Found

    def gather(self, staging: Staging) -> None:
        """Bring every row that was found to its token."""
        order = np.argsort(self.found.nodes, kind="stable")
        bounds = np.searchsorted(self.found.nodes[order], np.arange(len(self.nodes) + 1))
        for number in np.flatnonzero(np.diff(bounds)):
            places = order[bounds[number] : bounds[number + 1]]
            self.nodes[int(number)].gather(self.found.numbers[places], places, staging)


def locate(keys: IntArray, groups: Sequence[Group]) -> Located:
    """The rows that answer for tokens with these fullest n-grams, int64 `[tokens]`.

    Tokens in no group, and those that no table answers for, are ABSENT.
    """
    nodes = list(dict.fromkeys(node for group in groups for node in group.table.distinct))
    number_of = {node: number for number, node in enumerate(nodes)}
    found = Found.nothing(len(keys))
    if sum(len(group.places) for group in groups) < _SMALL * len(groups) and len(groups) > 1:
        _by_node(keys, groups, number_of, found)
        return Located(nodes, found)
    for group in groups:
        places = group.places
        part = group.table.find(keys[places])
        numbers = [number_of.get(node, ABSENT) for node in group.table.nodes]
        # A token without a row has place -1, the array's last.
        found.nodes[places] = np.array([*numbers, ABSENT], np.int16)[part.nodes]
        found.numbers[places] = part.numbers
        found.results[places] = part.results
    return Located(nodes, found)


def _by_node(
    keys: IntArray, groups: Sequence[Group], number_of: dict[NodeTable, int], found: Found
) -> None:
    """Ask each node once. A token's best answer has the least rank: the n-gram comes first, then
    the distance from the leaf."""
    candidates = np.stack([candidate(keys) for candidate in BACKOFF])
    asking: dict[NodeTable, list[tuple[int, Group]]] = {}
    for group in groups:
        for distance, node in enumerate(group.table.distinct):
            asking.setdefault(node, []).append((distance, group))
    best = np.full(len(keys), _NOTHING, np.int16)
    for node, askers in asking.items():
        places = np.concatenate([group.places for _, group in askers])
        ranks, numbers = _ask(node, askers, candidates[:, places])
        is_better = ranks < best[places]
        better = places[is_better]
        best[better] = ranks[is_better]
        found.nodes[better] = number_of[node]
        found.numbers[better] = numbers[is_better]
    answered = np.flatnonzero(best < _NOTHING)
    answers = candidates[best[answered] // _RANKS, answered]
    found.results[answered] = ngrams.order_of(answers)


def _ask(
    node: NodeTable, askers: Sequence[tuple[int, Group]], candidates: IntArray
) -> tuple[NDArray[np.int16], NDArray[np.int32]]:
    """A node's best answers for tokens: ranks int16 and numbers int32, `[n]` each.

    Args:
        candidates: int64 `[4, n]`: the n-grams that could answer, the best first.
    """
    sizes = [len(group.places) for _, group in askers]
    distances = np.repeat(np.array([distance for distance, _ in askers], np.int16), sizes)
    is_exact = np.repeat([group.table.computes for _, group in askers], sizes)
    numbers = node.find(candidates.reshape(-1)).reshape(candidates.shape)
    is_hit = numbers != ABSENT
    is_hit[1:] &= ~is_exact  # under `compute` nothing else may answer
    first = is_hit.argmax(axis=0)
    ranks = np.where(is_hit.any(axis=0), first * _RANKS + distances, _NOTHING).astype(np.int16)
    return ranks, numbers[first, np.arange(len(first))]
