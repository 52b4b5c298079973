"""The table that a task's domain would have, built from the texts that are not held out.

Knows folds and the store's selection; does not know rows.
"""

from __future__ import annotations

import numpy as np

from benchmarks.accuracy.inputs import NUM_CANDIDATES
from benchmarks.accuracy.tasks import Task
from services.common import ngrams
from services.common.ngram_counts import NgramCounter
from services.common.ngrams import MAX_ORDER, IntArray, order_of
from services.common.sorted_keys import union
from services.knowledge_store.tree import Source, combine
from services.knowledge_store.tree.selection import cover


def domain_rows(task: Task, fold: int, alpha: float) -> IntArray:
    """Keys that cover share `alpha` of the other folds' n-grams at each order; 1 takes them all.

    An admin's corpus, so that the sharing rules exempt it, and a budget that pays for everything.
    """
    rows = others(task, fold)
    counter = NgramCounter()
    counter.add(np.concatenate(rows), [len(row) for row in rows])
    counted = counter.counts("")
    weights = counted.counts.astype(np.float64)
    totals = np.bincount(order_of(counted.keys), weights, MAX_ORDER + 1)[1:].astype(np.float64)
    counts = combine([Source("", counted.keys, weights, totals)], is_private=False, min_tenants=3)
    return union(*(cover(counts, order, alpha) for order in range(1, MAX_ORDER + 1)))


def repeated(task: Task, fold: int) -> IntArray:
    """Keys that two texts or more of the other folds hold: what a table has of a text that is
    learnt from, were it not counted itself."""
    own = [np.unique(ngrams.candidates(ngrams.keys_of(r, [len(r)]))) for r in others(task, fold)]
    keys, num_texts = np.unique(np.concatenate(own), return_counts=True)
    return np.asarray(keys[num_texts > 1])


def hit_shares(task: Task, views: list[IntArray]) -> dict[int, float]:
    """Share of held-out tokens answered by an n-gram of each order; `views` is by fold."""
    fold_of_token = np.repeat(task.fold_of, task.lengths)
    view = np.choose(fold_of_token, views) % NUM_CANDIDATES
    answering = np.take_along_axis(ngrams.candidates(task.keys), view[:, None], 1)[:, 0]
    orders = order_of(answering)
    return {order: float((orders == order).mean()) for order in range(1, MAX_ORDER + 1)}


def others(task: Task, fold: int) -> list[IntArray]:
    """The texts that are not held out."""
    return [row for row, other in zip(task.rows, task.fold_of, strict=True) if other != fold]
