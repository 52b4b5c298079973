"""Some of a packed batch's rows, seen padded: what per-row products work on.

Knows positions only. Where the group is the whole batch and no row is padded, everything is a view.
Rows of very different lengths are cut into pieces: a token's product does not ask for its row's
other tokens, and padding all to the longest would cost more than the pieces' further weights.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.executor.models.segments import Segments

_PIECES = np.array([8, 16, 32, 64, 128])
# What the weights of one more piece cost, in tokens of padding.
_PIECE_COST = 16


class RowGroup:
    """Rows of a batch that share a kind of adapter.

    Args:
        segments: The batch.
        has: Which rows belong to the group, at least one; rows beyond its end do not.

    Attributes:
        rows: The batch's row of each of the group's, or of each piece of one.
        segments: Of the group's rows, or of their pieces.
    """

    def __init__(self, segments: Segments, has: Sequence[bool]) -> None:
        self.rows: NDArray[np.int64] = np.flatnonzero(np.asarray(has))
        self.is_all = len(self.rows) == segments.num_rows
        self._tokens: Tensor | None = None
        self.segments = segments
        if not self.is_all:
            lengths = np.asarray(segments.lengths)
            member = np.zeros(segments.num_rows, dtype=bool)
            member[self.rows] = True
            tokens = torch.from_numpy(np.flatnonzero(np.repeat(member, lengths)))
            self._tokens = tokens.to(segments.device)
            self.segments = Segments(lengths[self.rows].tolist(), segments.device)
        if self.segments.is_ragged:
            own, lengths = _pieces(np.asarray(self.segments.lengths))
            self.rows = self.rows[own]
            self.segments = Segments(lengths.tolist(), segments.device)

    @property
    def is_view(self) -> bool:
        """Whether `pad` makes a view of the batch, so that a change of it changes the batch."""
        return self.is_all and self.segments.is_uniform

    def pick(self, packed: Tensor) -> Tensor:
        """The group's tokens, `[batch tokens, w]` to `[tokens, w]`; the batch itself if all."""
        return packed if self._tokens is None else packed.index_select(0, self._tokens)

    def pad(self, packed: Tensor) -> Tensor:
        """`[batch tokens, w]` to `[rows, max_len, w]`."""
        return self.segments.pad(self.pick(packed))

    def view(self, packed: Tensor) -> Tensor:
        """`[batch tokens, w]`, of any stride, as `[rows, max_len, w]`; only if `is_view`."""
        stride, one = packed.stride()
        shape = (self.segments.num_rows, self.segments.max_len, packed.shape[1])
        return packed.as_strided(shape, (self.segments.max_len * stride, stride, one))

    def spread(self, vectors: Tensor) -> Tensor:
        """`[rows, w]`, one vector a row, to `[tokens, w]`."""
        return vectors.index_select(0, self.segments.row_of_token)

    def add(self, packed: Tensor, change: Tensor) -> None:
        """Add the group's tokens' `[tokens, w]` to the batch, in place."""
        if self._tokens is None:
            packed.add_(change)
        else:
            packed.index_add_(0, self._tokens, change)

    def put(self, packed: Tensor, tokens: Tensor) -> Tensor:
        """The batch with the group's tokens replaced; `packed` may be changed in place."""
        if self._tokens is None:
            return tokens
        return packed.index_copy_(0, self._tokens, tokens)


def _pieces(lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each piece's row and length, when rows are cut where it costs least."""
    counts = -(-lengths // _PIECES[:, None])
    best = (counts.sum(1) * (_PIECES + _PIECE_COST)).argmin()
    size, count = _PIECES[best], counts[best]
    rows = np.repeat(np.arange(len(lengths)), count)
    pieces = np.full(len(rows), size)
    pieces[np.cumsum(count) - 1] = lengths - (count - 1) * size
    return rows, pieces
