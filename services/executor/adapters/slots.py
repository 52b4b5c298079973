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
        tables: One table a row of the batch, int64 `[layers, vectors, rows a vector]`.
        width: Numbers in a vector.
    """

    def __init__(self, arena: Arena, tables: Sequence[IntArray | None], width: int) -> None:
        self._arena = arena
        self._width = width
        present = [table for table in tables if table is not None]
        self.num_vectors = max(table.shape[1] for table in present)
        rows_each = max(max(table.shape[2] for table in present), -(-width // arena.rows.shape[1]))
        shape = (present[0].shape[0], len(tables), self.num_vectors, rows_each)
        numbers = np.zeros(shape, np.int64)
        for row, table in enumerate(tables):
            if table is not None:
                numbers[:, row, : table.shape[1], : table.shape[2]] = table
        self._shape = (len(tables), self.num_vectors, rows_each * arena.rows.shape[1])
        flat = torch.from_numpy(numbers.reshape(shape[0], -1))
        self._numbers = flat.to(arena.rows.device, non_blocking=True)
        self.in_layer = [bool(layer.any()) for layer in numbers]

    def of(self, layer: int) -> Tensor:
        """`[rows, vectors, width]` of a layer; zeros where an adapter has none."""
        vectors = self._arena.rows.index_select(0, self._numbers[layer]).view(self._shape)
        return vectors if self._shape[2] == self._width else vectors[..., : self._width]


def gather(
    arena: Arena, slots: Sequence[Slot], table: Table, width: int, rows: IntArray | None = None
) -> Gather | None:
    """The vectors of a table for these rows of the batch (all if None); None if no row has any."""
    chosen = slots if rows is None else [slots[row] for row in rows]
    tables = [slot.tables.get(table) for slot in chosen]
    return Gather(arena, tables, width) if any(t is not None for t in tables) else None
