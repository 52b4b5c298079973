"""What a local encoder is shown while it is learnt: texts, pairs of texts, parts of n-grams.

Knows token ids and chance; does not know encoders or losses.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common import ngrams
from services.executor.models.local_encoder import LEFT, RIGHT
from services.executor.models.segments import Segments

# A matrix product with a new number of rows makes a CPU compile a kernel first, as long as the
# product takes: numbers of rows are rounded up, so that few occur.
ROUND = 128
# Of a token's n-gram, in training: a third loses the left neighbour, a third the right, a third
# both. It prepares for tables that lack the trigram (SkipBERT's code; design section 5).
DROP_OUTER = 0.35
# Texts that are shown as two, so that the segment embeddings are learnt.
PAIRED = 0.125
_SHORTEST_PAIR = 8


@dataclass(frozen=True, slots=True)
class Texts:
    """One batch of texts on the device.

    Attributes:
        token_ids: int64 `[tokens]`.
        type_ids: int64 `[tokens]`: which text of a pair a token is in; None where none is a pair.
        slots: int64 `[tokens, 3]`: each token's whole n-gram.
        num_tokens: Of the texts themselves; whatever follows is filling.
    """

    token_ids: Tensor
    type_ids: Tensor | None
    slots: Tensor
    segments: Segments
    num_tokens: int

    @classmethod
    def of(cls, rows: list[NDArray[np.int64]], device: torch.device) -> Self:
        """Single texts as they are."""
        return cls._of(rows, None, sum(map(len, rows)), device)

    @classmethod
    def to_learn(
        cls,
        rows: list[NDArray[np.int64]],
        separator: int,
        device: torch.device,
        rng: np.random.Generator,
    ) -> Self:
        """Some of them as pairs, filled up to a round number of tokens."""
        num_tokens = sum(map(len, rows))
        paired = [_pair(row, separator, rng) for row in rows]
        rows = [ids for ids, _ in paired] + _filling(-num_tokens % ROUND, max(map(len, rows)))
        types = np.zeros(sum(map(len, rows)), dtype=np.int64)
        types[:num_tokens] = np.concatenate([types for _, types in paired])
        return cls._of(rows, torch.from_numpy(types).to(device), num_tokens, device)

    @classmethod
    def _of(
        cls,
        rows: list[NDArray[np.int64]],
        type_ids: Tensor | None,
        num_tokens: int,
        device: torch.device,
    ) -> Self:
        lengths = [len(row) for row in rows]
        ids = np.concatenate(rows)
        slots = ngrams.unpack(ngrams.keys_of(ids, lengths))
        return cls(
            torch.from_numpy(ids).to(device),
            type_ids,
            torch.from_numpy(slots).to(device),
            Segments(lengths, device),
            num_tokens,
        )


def drop_outer(slots: Tensor, rng: np.random.Generator, share: float = DROP_OUTER) -> Tensor:
    """The n-grams with outer slots made absent at random."""
    fate = torch.from_numpy(rng.random(len(slots))).to(slots.device) / share
    dropped = slots.clone()
    dropped[:, LEFT][(fate < 2 / 3)] = 0
    dropped[:, RIGHT][(fate >= 1 / 3) & (fate < 1)] = 0
    return dropped


def _pair(
    row: NDArray[np.int64], separator: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Token and type ids of a text, or of the two that a separator in its middle makes of it."""
    types = np.zeros(len(row), dtype=np.int64)
    if len(row) < _SHORTEST_PAIR or rng.random() >= PAIRED:
        return row, types
    at = rng.integers(2, len(row) - 2)
    types[at + 1 :] = 1
    return np.concatenate([row[:at], [separator], row[at + 1 :]]), types


def _filling(num_tokens: int, longest: int) -> list[NDArray[np.int64]]:
    """Rows of token 0, none longer than the longest text."""
    lengths = [longest] * (num_tokens // longest) + [num_tokens % longest]
    return [np.zeros(length, dtype=np.int64) for length in lengths if length]
