"""Counts the n-grams of each tenant's traffic in each domain, beside the engine.

Knows keys, rows and how lookups ended; does not know who takes the counts. The engine's thread only
leaves a note of each batch; many batches are counted together, on another thread and without a loop
over tokens. What is kept is bounded, whoever sends what: rare n-grams go first.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from services.common import ngrams
from services.common.ngrams import IntArray
from services.executor.engine.engine import Part
from services.executor.observe.sketch import HeavyHitters
from services.executor.plot.metrics import LOOKUPS

# Keys kept of one tenant's traffic in one domain: as many unigrams and trigrams, twice the bigrams.
CAPACITY = 1 << 14
# Keys kept of all together, 16 bytes each.
MAX_KEYS = 1 << 22
# Tokens that may wait to be counted; what comes beyond is not counted.
MAX_WAITING_TOKENS = 1 << 22

_RESULTS = ("computed", "unigram", "bigram", "trigram")


class Group(NamedTuple):
    """Whose traffic it is: the base's name, the domain's path, the tenant."""

    base: str
    path: str
    tenant: str


@dataclass(frozen=True, slots=True)
class _Note:
    """A batch's rows of one base: whose each is, its tokens, and how each token was answered."""

    groups: Sequence[Group]
    token_ids: Sequence[IntArray]
    results: NDArray[np.uint8]


@dataclass(slots=True)
class Counts:
    """What one group sent.

    Attributes:
        results: int64 `[4]`: tokens that were computed, and answered by a uni-, bi- and trigram.
        sketches: By order, from 1.
    """

    results: IntArray = field(default_factory=lambda: np.zeros(len(_RESULTS), np.int64))
    sketches: tuple[HeavyHitters, ...] = field(
        default_factory=lambda: tuple(HeavyHitters(times * CAPACITY) for times in (1, 2, 1))
    )

    @property
    def num_tokens(self) -> int:
        """Tokens in all."""
        return int(self.results.sum())

    @property
    def num_keys(self) -> int:
        """Keys kept."""
        return sum(map(len, self.sketches))


class Counter:
    """Methods may be called from any thread.

    Args:
        max_keys: Keys kept at most, of all groups together.
    """

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._noting, self._counting = threading.Lock(), threading.Lock()
        self._notes: list[_Note] = []
        self._num_waiting = 0
        self._counts: dict[Group, Counts] = {}

    def observe(self, part: Part) -> None:
        """Leave a note of what a batch looked up. Cheap."""
        if part.retrieved is None:
            return
        results = part.retrieved.results.cpu().numpy()
        for result, number in zip(_RESULTS, np.bincount(results, minlength=4), strict=True):
            LOOKUPS.labels(part.base.name, result).inc(int(number))
        groups = [
            Group(part.base.name, row.table.manifest.path, row.item.key.tenant) for row in part.rows
        ]
        note = _Note(groups, [item.token_ids for item in part.items], results)
        with self._noting:
            if self._num_waiting + len(results) <= MAX_WAITING_TOKENS:
                self._notes.append(note)
                self._num_waiting += len(results)

    def count(self) -> None:
        """Count what was noted. Takes its time: about a second for 2 M tokens."""
        with self._counting:  # first: whoever counts next finds these counted
            with self._noting:
                notes, self._notes, self._num_waiting = self._notes, [], 0
            if notes:
                self._add(notes)
                self._shrink()

    def take(self) -> dict[Group, Counts]:
        """What was counted since the last call."""
        with self._counting:
            taken, self._counts = self._counts, {}
        return taken

    def _add(self, notes: Sequence[_Note]) -> None:
        rows = list(chain.from_iterable(note.groups for note in notes))
        token_ids = list(chain.from_iterable(note.token_ids for note in notes))
        lengths = np.fromiter(map(len, token_ids), np.int64, len(token_ids))
        numbers = {group: number for number, group in enumerate(dict.fromkeys(rows))}
        group_of = np.repeat([numbers[group] for group in rows], lengths)
        answers = np.concatenate([note.results for note in notes])
        results = np.bincount(group_of * 4 + answers, minlength=4 * len(numbers)).reshape(-1, 4)
        counted = _count(group_of, ngrams.keys_of(np.concatenate(token_ids), lengths))
        for group, number in numbers.items():
            counts = self._counts.setdefault(group, Counts())
            counts.results += results[number]
            for sketch, (owners, keys, times) in zip(counts.sketches, counted, strict=True):
                first, last = np.searchsorted(owners, (number, number + 1))
                sketch.add(keys[first:last], times[first:last])

    def _shrink(self) -> None:
        """If all sketches together are too large, cut the largest down to one size."""
        sketches = [sketch for counts in self._counts.values() for sketch in counts.sketches]
        sizes = np.fromiter(map(len, sketches), np.int64, len(sketches))
        if sizes.sum() <= self._max_keys:
            return
        size = _level(sizes, self._max_keys)
        for sketch in sketches:
            sketch.shrink(size)


def _level(sizes: IntArray, total: int) -> int:
    """The largest size to which all can be cut so that they add up to at most `total`."""
    low, high = 0, int(sizes.max())
    while low < high:
        middle = (low + high + 1) // 2
        if np.minimum(sizes, middle).sum() <= total:
            low = middle
        else:
            high = middle - 1
    return low


def _count(groups: IntArray, fullest: IntArray) -> list[tuple[IntArray, IntArray, IntArray]]:
    """How often each n-gram came in each group, by order from 1.

    A token counts for itself, for its bigrams with each neighbour and for its trigram, each as far
    as there are neighbours.

    Args:
        groups: int64 `[tokens]`.
        fullest: int64 `[tokens]`: each token's fullest n-gram.

    Returns:
        A triple an order: groups, keys and counts, int64 `[n]` each, ascending by group.
    """
    has_left = fullest != ngrams.without_left(fullest)
    has_right = fullest != ngrams.without_right(fullest)
    has_both = has_left & has_right
    bigrams = (ngrams.without_right(fullest[has_left]), ngrams.without_left(fullest[has_right]))
    return [
        _sum(groups, ngrams.only_centre(fullest)),
        _sum(np.concatenate([groups[has_left], groups[has_right]]), np.concatenate(bigrams)),
        _sum(groups[has_both], fullest[has_both]),
    ]


def _sum(groups: IntArray, keys: IntArray) -> tuple[IntArray, IntArray, IntArray]:
    """Distinct pairs, ascending by group and then key, and how often each came."""
    order = np.lexsort((keys, groups))
    groups, keys = groups[order], keys[order]
    is_new = np.concatenate([[True], (keys[1:] != keys[:-1]) | (groups[1:] != groups[:-1])])
    starts = np.flatnonzero(is_new[: len(keys)])
    return groups[starts], keys[starts], np.diff(np.append(starts, len(keys)))
