"""Which n-gram answers for each token of held-out traffic, from keys alone.

Knows sets of keys along a path; does not know rows. All nodes here have one encoder, so that it
does not matter which node of the path answers; a test holds it against the executor's tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.trees.texts import ROOT, Text
from services.common import ngrams
from services.common.ids import parent_path
from services.common.ngrams import IntArray
from services.common.sorted_keys import contains, union

Tables = Mapping[str, IntArray]


@dataclass(frozen=True, slots=True)
class Hits:
    """Tokens of each text answered by an n-gram of each order.

    Attributes:
        by_order: int64 `[texts, 4]`; column 0 is what nothing answers.
    """

    by_order: IntArray

    @property
    def num_tokens(self) -> IntArray:
        """`[texts]`."""
        return np.asarray(self.by_order.sum(1))

    def at_least(self, order: int) -> IntArray:
        """Tokens answered by an n-gram of this many tokens or more, `[texts]`."""
        return np.asarray(self.by_order[:, order:].sum(1))

    def share(self, order: int) -> float:
        """Of all tokens, those answered by an n-gram of at least this many."""
        return float(self.at_least(order).sum() / self.num_tokens.sum())


def answering(keys: IntArray, rows: IntArray) -> IntArray:
    """The n-gram that answers for each fullest n-gram `[n]`; 0: none (design section 5: trigram,
    left bigram, right bigram, unigram)."""
    answers = np.zeros(len(keys), np.int64)
    for candidate in ngrams.candidates(keys).T:
        is_answered = (answers == 0) & contains(rows, candidate)
        answers[is_answered] = candidate[is_answered]
    return answers


def answering_orders(keys: IntArray, rows: IntArray) -> NDArray[np.int64]:
    """The order of the n-gram that answers for each fullest n-gram `[n]`; 0: none."""
    return np.asarray(ngrams.order_of(answering(keys, rows)), np.int64)


def look_up(texts: Sequence[Text], tables: Tables, *, beside: IntArray | None = None) -> Hits:
    """Look all texts up, each along its domain's path.

    Args:
        beside: Rows whose answers are not counted, ascending: those tokens are in column 0.
    """
    by_order = np.zeros((len(texts), ngrams.MAX_ORDER + 1), np.int64)
    for path in {text.path for text in texts}:
        rows = path_rows(path, tables)
        places = [place for place, text in enumerate(texts) if text.path == path]
        keys = np.concatenate([texts[place].keys for place in places])
        owners = np.repeat(np.arange(len(places)), [len(texts[place].keys) for place in places])
        answers = answering(keys, rows)
        if beside is not None:
            answers[contains(beside, answers)] = 0
        orders = ngrams.order_of(answers)
        counted = np.bincount(owners * 4 + orders, minlength=4 * len(places))
        by_order[places] = counted.reshape(-1, 4)
    return Hits(by_order)


def path_rows(path: str, tables: Tables) -> IntArray:
    """All keys on a domain's path. A node without a table counts as empty."""
    held = [tables[ROOT]]
    while path:
        held.append(tables.get(path, held[0][:0]))
        path = parent_path(path)
    return union(*held)
