"""Where each sequence of a packed batch begins and ends.

Knows lengths and indices only; does not know what the tokens mean. A packed tensor is
`[tokens, ...]`, all rows' tokens one after another without padding; only attention and per-row
(adapter) products see the padded `[rows, max_len, ...]` form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Padded to the longest row, a batch may have this many times its tokens, and a few more.
_RAGGED = 1.25
_FEW_TOKENS = 64


class Segments:
    """Row boundaries of a packed batch.

    Args:
        lengths: Tokens of each row, all at least 1.
        device: Where index tensors live.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = list(lengths)
        self.device = device
        self.num_rows = len(self.lengths)
        self.num_tokens = sum(self.lengths)
        self.max_len = max(self.lengths, default=0)
        self.is_uniform = all(length == self.max_len for length in self.lengths)

    @cached_property
    def cu_seqlens(self) -> Tensor:
        """int32 `[rows + 1]`: first token of each row, and the end."""
        ends = torch.tensor([0, *self.lengths], dtype=torch.int64).cumsum(0)
        return ends.to(torch.int32).to(self.device)

    @cached_property
    def row_of_token(self) -> Tensor:
        """int64 `[tokens]`: the row each token belongs to."""
        rows = torch.arange(self.num_rows)
        lengths = torch.tensor(self.lengths, dtype=torch.int64)
        return torch.repeat_interleave(rows, lengths).to(self.device)

    @cached_property
    def position_of_token(self) -> Tensor:
        """int64 `[tokens]`: each token's place in its row, from 0."""
        starts = self.cu_seqlens[:-1].to(torch.int64)
        return torch.arange(self.num_tokens, device=self.device) - starts[self.row_of_token]

    @cached_property
    def first_tokens(self) -> Tensor:
        """int64 `[rows]`: index of each row's first token."""
        return self.cu_seqlens[:-1].to(torch.int64)

    @cached_property
    def padded_index(self) -> Tensor:
        """int64 `[tokens]`: each token's place in the flattened padded form."""
        return self.row_of_token * self.max_len + self.position_of_token

    @cached_property
    def key_mask(self) -> Tensor | None:
        """bool `[rows, 1, 1, max_len]`, True where a key exists; None if no row is padded."""
        if self.is_uniform:
            return None
        lengths = torch.tensor(self.lengths, device=self.device)
        exists = torch.arange(self.max_len, device=self.device)[None, :] < lengths[:, None]
        return exists[:, None, None, :]

    def pad(self, packed: Tensor) -> Tensor:
        """`[tokens, *rest]` to `[rows, max_len, *rest]`, zeros in the gaps.

        A view if no row is padded.
        """
        rest = packed.shape[1:]
        if self.is_uniform:
            return packed.view(self.num_rows, self.max_len, *rest)
        padded = packed.new_zeros(self.num_rows * self.max_len, *rest)
        padded.index_copy_(0, self.padded_index, packed)
        return padded.view(self.num_rows, self.max_len, *rest)

    def unpad(self, padded: Tensor) -> Tensor:
        """`[rows, max_len, *rest]` to `[tokens, *rest]`. A view if no row is padded."""
        flat = padded.reshape(self.num_rows * self.max_len, *padded.shape[2:])
        return flat if self.is_uniform else flat.index_select(0, self.padded_index)

    def prefix(self, num_rows: int) -> Segments:
        """The segments of the first `num_rows` rows."""
        return self if num_rows == self.num_rows else Segments(self.lengths[:num_rows], self.device)

    @property
    def is_ragged(self) -> bool:
        """Whether padding all rows to the longest wastes enough to be worth avoiding."""
        return self.num_rows * self.max_len > _RAGGED * self.num_tokens + _FEW_TOKENS

    @cached_property
    def by_length(self) -> ByLength:
        """The rows in groups of similar length, which waste little when padded."""
        return ByLength.of(np.asarray(self.lengths), self.device)


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Rows of similar length.

    Attributes:
        segments: Of these rows alone.
        source: int64 `[rows * max_len]`: the batch's token at each place of the padded form. A
            gap repeats its own row's last token: nothing of one row ever meets another's.
    """

    segments: Segments
    source: Tensor


@dataclass(frozen=True, slots=True)
class ByLength:
    """A batch's rows in groups, shortest first.

    Attributes:
        place: int64 `[tokens]`: where each token of the batch stands in the groups' padded forms,
            one after another.
    """

    groups: Sequence[LengthGroup]
    place: Tensor

    @classmethod
    def of(cls, lengths: NDArray[np.int64], device: torch.device) -> ByLength:
        """A group for each octave of lengths."""
        ends = np.cumsum(lengths)
        starts = ends - lengths
        octave = np.frexp(lengths - 0.5)[1]  # 2 ** (octave - 1) < length <= 2 ** octave
        place = np.empty(ends[-1], dtype=np.int64)
        groups: list[LengthGroup] = []
        offset = 0
        for each in np.unique(octave):
            rows = np.flatnonzero(octave == each)
            width = lengths[rows].max()
            within = np.minimum(np.arange(width), lengths[rows, None] - 1)
            source = starts[rows, None] + within
            places = offset + np.arange(source.size).reshape(source.shape)
            is_token = np.arange(width) < lengths[rows, None]
            place[source[is_token]] = places[is_token]
            offset += source.size
            own = Segments(lengths[rows].tolist(), device)
            groups.append(LengthGroup(own, torch.from_numpy(source.reshape(-1)).to(device)))
        return cls(groups, torch.from_numpy(place).to(device))
