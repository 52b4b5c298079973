"""Where a batch's rows come together: from mapped files and hot memory onto the device.

Knows memory; does not know keys or tables. On a CPU mapped rows are copied straight to their
tokens. On a device they go through pinned memory, and everything is queued: nothing waits for the
device, so that retrieval for the next batch overlaps the computation of this one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common.ngrams import IntArray

HalfArray = NDArray[np.float16]

_CHUNK = 512  # rows copied at a time: the copy between stays in the second-level cache


class Staging:
    """The values of one batch's tokens.

    Attributes:
        values: fp16 `[tokens, slots, hidden]` on the device; undefined where nothing was put.

    Args:
        is_pinned: Go through pinned memory; the default is to do so for every device but a CPU.
    """

    def __init__(
        self,
        num_tokens: int,
        row_shape: tuple[int, int],
        device: torch.device,
        *,
        is_staged: bool | None = None,
    ) -> None:
        self.device = device
        self.values = torch.empty((num_tokens, *row_shape), dtype=torch.float16, device=device)
        self._is_staged = device.type != "cpu" if is_staged is None else is_staged

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """A small array's copy on the device, queued."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def put_rows(self, rows: Tensor, slots: NDArray[Any], places: IntArray) -> None:
        """Copy rows `slots` int `[n]` of fp16 `[rows, slots, hidden]`, on the device, to tokens
        `places` int64 `[n]`."""
        if not len(slots):
            return
        if self.device.type == "cpu" and not self._is_staged:
            copy_rows(rows.numpy(), slots, self.values.numpy(), places)  # twice as fast
            return
        picked = rows.index_select(0, self.to_device(slots))
        self.values.index_copy_(0, self.to_device(places), picked)

    def put_values(self, values: Tensor, places: IntArray) -> None:
        """Take values fp16 `[n, slots, hidden]`, on any device, for tokens `places` int64 `[n]`."""
        if len(places):
            on_device = values.to(self.device, non_blocking=True)
            self.values.index_copy_(0, self.to_device(places), on_device)

    def mapped(self, places: IntArray) -> tuple[HalfArray, IntArray]:
        """Host memory for mapped rows of these tokens, and where in it each goes.

        What was written there arrives with `put_mapped`.
        """
        if not self._is_staged:
            return self.values.numpy(), places
        shape = (len(places), *self.values.shape[1:])
        is_pinned = self.device.type == "cuda"
        buffer = torch.empty(shape, dtype=torch.float16, pin_memory=is_pinned)
        return buffer.numpy(), np.arange(len(places))

    def put_mapped(self, buffer: HalfArray, places: IntArray) -> None:
        """Bring what `mapped` lent to the tokens."""
        if self._is_staged:
            self.put_values(torch.from_numpy(buffer), places)


def copy_rows(source: HalfArray, rows: NDArray[Any], out: HalfArray, places: IntArray) -> None:
    """`out[places] = source[rows]` in small pieces."""
    for first in range(0, len(rows), _CHUNK):
        part = slice(first, first + _CHUNK)
        out[places[part]] = np.take(source, rows[part], axis=0)
