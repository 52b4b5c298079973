"""The device tier's memory: rows of `hidden` numbers that any adapter can take.

One size for everything, so memory never fragments and needs no rank classes. Row 0 is zeros and is
never given away. Knows free rows; does not know whose the others are.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


class Arena:
    """`[num_rows, hidden]` on the device, and the numbers of the free rows.

    Not thread-safe: the store's lock guards `take` and `give`. `write` may run beside a batch,
    because it only touches rows that no batch refers to.

    Args:
        size_bytes: Bytes at most; at least two rows are made.
    """

    def __init__(
        self, hidden_size: int, *, size_bytes: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        num_rows = max(2, size_bytes // (hidden_size * dtype.itemsize))
        self.rows: Tensor = torch.zeros(num_rows, hidden_size, dtype=dtype, device=device)
        self.capacity = num_rows - 1
        self._free: IntArray = np.arange(num_rows - 1, 0, -1, dtype=np.int64)  # a stack
        self.num_free = self.capacity
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @property
    def size_bytes(self) -> int:
        return self.rows.numel() * self.rows.element_size()

    def rows_of(self, width: int) -> int:
        """Rows that a vector takes."""
        return -(-width // self.rows.shape[1])

    def take(self, count: int) -> IntArray | None:
        """Numbers of `count` rows that are the caller's now; None if there are fewer free."""
        if count > self.num_free:
            return None
        taken = self._free[self.num_free - count : self.num_free].copy()
        self.num_free -= count
        return taken

    def give(self, numbers: IntArray) -> None:
        """Take rows back. Nobody may refer to them any more."""
        self._free[self.num_free : self.num_free + len(numbers)] = numbers
        self.num_free += len(numbers)

    def write(self, numbers: IntArray, rows: Tensor) -> None:
        """Copy host rows `[count, hidden]` into rows just taken; returns when they are there.

        On CUDA the copy has a stream of its own, and the calling thread alone waits for it.
        """
        device = self.rows.device
        if self._stream is None:
            self.rows.index_copy_(0, torch.from_numpy(numbers), rows)
            return
        with torch.cuda.stream(self._stream):
            index = torch.from_numpy(numbers).to(device, non_blocking=True)
            self.rows.index_copy_(0, index, rows.to(device, non_blocking=True))
        self._stream.synchronize()
