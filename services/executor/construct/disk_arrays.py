"""Long arrays that lie in files: written piece by piece, read as if they were in memory.

Knows numbers and files; does not know what they mean. The files have no names, so nothing is left
when the arrays are gone, however that comes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK = 1 << 16
"""Numbers that are worked on at once."""

Number = TypeVar("Number", bound=np.integer[Any])


class DiskArray(Generic[Number]):
    """An array that grows at its end.

    Args:
        directory: On which disk it lies; None is the system's directory for temporary files.
        dtype: Its numbers'.
    """

    def __init__(self, directory: Path | None, dtype: type[Number]) -> None:
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - closed by `finish`
        self._dtype = dtype

    def append(self, numbers: NDArray[np.integer[Any]]) -> None:
        """Write numbers behind those that are there.

        Raises:
            OSError: The disk is full.
        """
        self._file.write(np.ascontiguousarray(numbers, self._dtype).data)

    def finish(self) -> NDArray[Number]:
        """All of it, memory-mapped; it may be changed in place, but grows no more.

        Raises:
            OSError: The disk is full.
        """
        with self._file as file:
            file.flush()
            if not file.tell():  # nothing cannot be mapped
                return np.empty(0, self._dtype)
            return np.asarray(np.memmap(file, self._dtype, mode="r+"))


def shuffled(
    num: int, rng: np.random.Generator, directory: Path | None
) -> NDArray[np.int32] | NDArray[np.int64]:
    """`rng.permutation(num)`, number for number, in a file."""
    is_small = num <= np.iinfo(np.int32).max
    order: DiskArray[Any] = DiskArray(directory, np.int32 if is_small else np.int64)
    for start in range(0, num, BLOCK):
        order.append(np.arange(start, min(start + BLOCK, num)))
    numbers = order.finish()
    rng.shuffle(numbers)
    return numbers
