"""One adapter's place in device memory, and the gathering of many rows' vectors from it.

Knows tables and row numbers; does not know what a vector is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common.adapter_format import Bottleneck, Head, Site
from services.executor.adapters.arena import Arena
from services.executor.adapters.packing import Packed, Table

IntArray = NDArray[np.int64]


class Key(Protocol):
    """Names one immutable version of one model."""

    def __hash__(self) -> int: ...

    @property
    def tenant(self) -> str:
        """Whose it is."""
        ...

    @property
    def digest(self) -> str:
        """sha256 of the version's blob, in hex."""
        ...


class Slot:
    """A resident adapter. Opaque to the engine; valid between its acquire and its release.

    Args:
        numbers: The arena's rows, in the order of `packed.rows`.
    """

    def __init__(self, key: Key, packed: Packed, numbers: IntArray) -> None:
        self.key = key
        self.numbers = numbers
        lookup = np.concatenate([np.zeros(1, np.int64), numbers])
        self.tables: dict[Table, IntArray] = {
            name: lookup[table] for name, table in packed.tables.items()
        }
        self.bottlenecks: dict[tuple[int, Site], Bottleneck] = packed.bottlenecks
        self.head: Head = packed.head
        self.num_users = 0


class Gather:
    """The same vectors of several rows' adapters, padded to the most any of them has.

    Args:
        arena: Where the vectors lie.
        numbers: int64 `[layers, rows, vectors, rows a vector]`, as `numbers_of` makes them.
        width: Numbers in a vector.
    """

    def __init__(self, arena: Arena, numbers: IntArray, width: int) -> None:
        self._arena = arena
        self._width = width
        num_layers, num_rows, num_vectors, rows_each = numbers.shape
        self._shape = (num_rows, num_vectors, rows_each * arena.rows.shape[1])
        flat = torch.from_numpy(numbers.reshape(num_layers, -1))
        self._numbers = flat.to(arena.rows.device, non_blocking=True)
        self.in_layer = [bool(layer.any()) for layer in numbers]

    def of(self, layer: int) -> Tensor:
        """`[rows, vectors, width]` of a layer; zeros where an adapter has none."""
        vectors = self._arena.rows.index_select(0, self._numbers[layer]).view(self._shape)
        return vectors if self._shape[2] == self._width else vectors[..., : self._width]


def numbers_of(tables: Sequence[IntArray | None], num_each: int) -> IntArray | None:
    """Row numbers of one table a row of the batch, 0 where there is none; None if all have none.

    Args:
        tables: int64 `[layers, vectors, rows a vector]` each.
        num_each: Rows that a vector takes at least.
    """
    present = [table for table in tables if table is not None]
    if not present:
        return None
    num_vectors = max(table.shape[1] for table in present)
    num_each = max(num_each, *(table.shape[2] for table in present))
    numbers = np.zeros((present[0].shape[0], len(tables), num_vectors, num_each), np.int64)
    for row, table in enumerate(tables):
        if table is not None:
            numbers[:, row, : table.shape[1], : table.shape[2]] = table
    return numbers


def gather(arena: Arena, tables: Sequence[IntArray | None], width: int) -> Gather | None:
    """The vectors of one table a row of the batch; None if no row has any."""
    numbers = numbers_of(tables, arena.rows_of(width))
    return None if numbers is None else Gather(arena, numbers, width)
