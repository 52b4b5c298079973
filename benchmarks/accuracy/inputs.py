"""What the first trained layer sees of each token, computed once for a task.

Knows encoders, and which n-gram answers for a token; does not know labels. Nothing below the split
changes while adapters are trained, so that rows are computed once and only gathered afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.tasks import Task
from services.common import ngrams
from services.common.ngrams import IntArray
from services.common.sorted_keys import contains, union
from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import Encoder
from services.executor.models.local_encoder import LocalEncoder
from services.executor.models.segments import Segments

NUM_CANDIDATES = 4
FULL, UNIGRAM = 0, NUM_CANDIDATES - 1
_BATCH_TOKENS = 8_192


class Inputs(Protocol):
    """A task's texts as they enter the first layer that adapters may change."""

    def take(self, tokens: Tensor, segments: Segments, view: IntArray | None) -> Tensor:
        """`[tokens, hidden]` of packed texts.

        Args:
            tokens: int64 `[tokens]`: places among all the task's tokens, texts one after another.
            view: Which of a token's four n-grams answers, `[tokens]`; ignored where there are none.
        """
        ...


class Fixed:
    """Every text has one input, such as the unsplit base's own lower layers'.

    Args:
        hidden: `[tokens, hidden]` of all the task's texts.
    """

    def __init__(self, hidden: Tensor) -> None:
        self._hidden = hidden

    def take(self, tokens: Tensor, segments: Segments, view: IntArray | None) -> Tensor:
        return self._hidden[tokens]


class LookedUp:
    """Rows of one or two local encoders of one tree.

    Args:
        encoders: The domain's, and if that was adapted, the one above it. A view's number is a
            place among the four candidates, plus four where the second encoder's row answers.
        keys: Every token's fullest n-gram, int64 `[tokens]`.
    """

    def __init__(self, encoders: Sequence[LocalEncoder], keys: IntArray) -> None:
        self._local = encoders[0]
        distinct, places = np.unique(ngrams.candidates(keys), return_inverse=True)
        wanted = torch.from_numpy(distinct)
        self._rows = torch.cat([encoder.rows(wanted) for encoder in encoders])
        shifts = np.arange(len(encoders)) * len(distinct)
        columns = [places.reshape(-1, NUM_CANDIDATES) + shift for shift in shifts]
        self._places = torch.from_numpy(np.concatenate(columns, 1))

    def take(self, tokens: Tensor, segments: Segments, view: IntArray | None) -> Tensor:
        if view is None:
            raise ValueError("rows need to be told which n-gram answers")
        places = self._places[tokens, torch.from_numpy(view)]
        with torch.no_grad():
            values = self._local.split_values(self._rows[places], segments)
            return self._local.merge(values, None, segments)


def backed_off(keys: IntArray, rows: IntArray, leaf_rows: IntArray | None = None) -> IntArray:
    """Which of its four n-grams answers for each token under back-off (design section 5).

    Args:
        rows: Keys of the tables on the path, ascending; every unigram is taken to be there.
        leaf_rows: Keys whose rows a domain's own encoder made; None: there is one encoder. What
            is not among them is answered by the second encoder's row.
    """
    columns = ngrams.candidates(keys)
    held = rows if leaf_rows is None else union(rows, leaf_rows)
    is_there = np.stack([contains(held, column) for column in columns.T], 1)
    is_there[:, UNIGRAM] = True
    view: IntArray = is_there.argmax(1)
    if leaf_rows is not None:
        answering = np.take_along_axis(columns, view[:, None], 1)[:, 0]
        view = view + NUM_CANDIDATES * ~contains(leaf_rows, answering)
    return view


@torch.inference_mode()
def of_base(base: Encoder, task: Task, num_layers: int) -> Fixed:
    """The unsplit base's hidden states below layer `num_layers`: 0 gives its embeddings."""
    parts = []
    for ids, segments in _batches(task, base):
        hidden = base.embed(ids, None, segments)
        parts.append(
            base.run(hidden, segments, layers=range(num_layers), bypass=NoBypass()).clone()
        )
    return Fixed(torch.cat(parts))


def _batches(task: Task, base: Encoder) -> Iterator[tuple[Tensor, Segments]]:
    rows: list[IntArray] = []
    for number, row in enumerate(task.rows):
        rows.append(row)
        if sum(map(len, rows)) >= _BATCH_TOKENS or number == len(task) - 1:
            segments = Segments([len(some) for some in rows], base.device)
            yield torch.from_numpy(np.concatenate(rows)).to(base.device), segments
            rows = []
