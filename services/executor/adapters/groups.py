"""Some of a packed batch's rows, seen padded: what per-row products work on.

Knows positions only. Where the group is the whole batch and no row is padded, everything is a view.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.executor.models.segments import Segments


class RowGroup:
    """Rows of a batch that share a kind of adapter.

    Args:
        segments: The batch.
        has: Which rows belong to the group; at least one.
    """

    def __init__(self, segments: Segments, has: Sequence[bool]) -> None:
        self.rows: NDArray[np.int64] = np.flatnonzero(np.asarray(has))
        self.is_all = len(self.rows) == segments.num_rows
        self._tokens: Tensor | None = None
        self.segments = segments
        if not self.is_all:
            lengths = np.asarray(segments.lengths)
            member = torch.from_numpy(np.repeat(np.asarray(has), lengths))
            self._tokens = member.nonzero().view(-1).to(segments.device)
            self.segments = Segments(lengths[self.rows].tolist(), segments.device)

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
