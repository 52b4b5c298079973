"""What other ways to answer without a trigram would bring: `python -m benchmarks accuracy-merging`.

No adapter is trained: the error of the last layer's hidden states against the unsplit base's tells
ways apart in minutes. Each fills in the row of a missing trigram (a, b, c) from rows of fewer
tokens; tables are those of the first fold, and its held-out texts are judged.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks import datasets
from benchmarks.accuracy.__main__ import ENCODER
from benchmarks.accuracy.subjects import Encoders
from benchmarks.accuracy.tables import domain_rows, others
from benchmarks.accuracy.tasks import LIMITS, Task, load
from benchmarks.report import Report
from benchmarks.resampling import ratio_of_sums
from services.common import ngrams
from services.common.ngrams import IntArray
from services.common.sorted_keys import contains, union
from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import Encoder
from services.executor.models.local_encoder import LocalEncoder
from services.executor.models.segments import Segments

ALPHA = 0.5
FOLD = 0
NUM_TEXTS = 300
NUM_TAUGHT = 120_000  # tokens that the mean effects of neighbours are taken from
_DOUBT = 5.0  # tokens a neighbour must have been seen beside for its own mean to count half
_SLOT_MASK = (1 << ngrams.SLOT_BITS) - 1


@dataclass(frozen=True)
class _Rows:
    """Float32 `[tokens, hidden]` of each of a token's four n-grams, and which of them are held.

    Attributes:
        keys: int64 `[tokens]`: fullest n-grams.
        is_held: bool `[tokens, 1]` each.
    """

    keys: IntArray
    trigram: Tensor
    left: Tensor
    right: Tensor
    unigram: Tensor
    is_held: tuple[Tensor, ...]

    @classmethod
    def of(cls, local: LocalEncoder, keys: IntArray, held: IntArray) -> _Rows:
        """Rows of every n-gram, held or not."""
        columns = ngrams.candidates(keys)
        distinct, places = np.unique(columns, return_inverse=True)
        rows = local.rows(torch.from_numpy(distinct))[:, 0].float()
        trigram, left, right, unigram = (
            rows[torch.from_numpy(some)] for some in places.reshape(columns.shape).T
        )
        is_held = tuple(torch.from_numpy(contains(held, some))[:, None] for some in columns.T)
        return cls(keys, trigram, left, right, unigram, is_held)

    @property
    def neighbours(self) -> tuple[Tensor, Tensor]:
        """The tokens to the left and right, plus one; 0 where there is none: int64 `[tokens]`."""
        packed = torch.from_numpy(self.keys)
        return packed >> 2 * ngrams.SLOT_BITS, packed & _SLOT_MASK

    def unless_trigram(self, other: Tensor) -> Tensor:
        return torch.where(self.is_held[0], self.trigram, other)

    def unless_both_bigrams(self, other: Tensor) -> Tensor:
        """`other` where both are held and the trigram is not, else what back-off says."""
        backed_off = torch.where(self.is_held[2], self.right, self.unigram)
        backed_off = torch.where(self.is_held[1], self.left, backed_off)
        return self.unless_trigram(
            torch.where(self.is_held[1] & self.is_held[2], other, backed_off)
        )


class _Effects:
    """What a neighbour adds to a token's row, on the mean of the tokens it was seen beside."""

    def __init__(self, seen: _Rows, vocab_size: int) -> None:
        changes = (seen.left - seen.unigram, seen.right - seen.unigram)
        self._means = [
            _means(neighbour, change, vocab_size + 1)
            for neighbour, change in zip(seen.neighbours, changes, strict=True)
        ]

    def beside(self, rows: _Rows) -> Tensor:
        """Unigram and both neighbours' effects: those in held bigrams, else the means."""
        filled = rows.unigram.clone()
        for side, bigram in enumerate((rows.left, rows.right)):
            mean = self._means[side][rows.neighbours[side]]
            filled += torch.where(rows.is_held[1 + side], bigram - rows.unigram, mean)
        return rows.unless_trigram(filled)


def _means(of: Tensor, changes: Tensor, size: int) -> Tensor:
    """`[size, hidden]`: mean change by neighbour, drawn towards that of all."""
    sums = changes.new_zeros(size, changes.shape[1]).index_add_(0, of, changes)
    numbers = torch.bincount(of, minlength=size)[:, None]
    return (sums + _DOUBT * changes.mean(0)) / (numbers + _DOUBT)


@torch.inference_mode()
def measure(report: Report, task: Task, encoders: Encoders) -> None:
    """One task's errors by way of merging."""
    base, local = encoders.base, encoders.ours
    held = union(domain_rows(task, FOLD, ALPHA), encoders.root)
    texts = [row for row, fold in zip(task.rows, task.fold_of, strict=True) if fold == FOLD]
    texts = texts[:NUM_TEXTS]
    rows = _Rows.of(local, _keys(texts), held)
    taught = _keys(others(task, FOLD))
    chance = np.random.default_rng(0)
    seen = _Rows.of(local, chance.permutation(taught)[:NUM_TAUGHT], held)
    ways = {
        "every trigram held": rows.trigram,
        "back-off": rows.unless_both_bigrams(rows.left),
        "mean of both bigrams": rows.unless_both_bigrams((rows.left + rows.right) / 2),
        "sum of both bigrams less the unigram": rows.unless_both_bigrams(
            rows.left + rows.right - rows.unigram
        ),
        "and neighbours' mean effects": _Effects(seen, base.config.vocab_size).beside(rows),
    }
    segments = Segments([len(text) for text in texts], base.device)
    ids = torch.from_numpy(np.concatenate(texts))
    whole = base.run(
        base.embed(ids, None, segments), segments,
        layers=range(base.config.num_layers), bypass=NoBypass(),
    )  # fmt: skip
    for name, filled in ways.items():
        error = _above(base, local, filled, segments) - whole
        value = ratio_of_sums(_by_text(error, segments), _by_text(whole, segments))
        report.add(f"{task.name}: squared error of the last layer, {name}", value, "")


def _above(base: Encoder, local: LocalEncoder, rows: Tensor, segments: Segments) -> Tensor:
    hidden = local.merge(rows, None, segments)
    layers = range(local.split, base.config.num_layers)
    return base.run(hidden, segments, layers=layers, bypass=NoBypass())


def _by_text(hidden: Tensor, segments: Segments) -> Tensor:
    """Sum of squares of each text."""
    squares = hidden.float().square().sum(1)
    return squares.new_zeros(segments.num_rows).index_add_(0, segments.row_of_token, squares)


def _keys(texts: list[IntArray]) -> IntArray:
    return ngrams.keys_of(np.concatenate(texts), [len(text) for text in texts])


def main() -> None:
    encoders = Encoders.of(ENCODER, None)
    with Report("merging") as report:
        try:
            for name, limits in LIMITS.items():
                measure(report, load(name, limits), encoders)
        except datasets.Missing as missing:
            sys.exit(str(missing))
        report.note(f"alpha {ALPHA:g}; {NUM_TEXTS} held-out texts; of the base's own square")


if __name__ == "__main__":
    main()
