"""LoRA, IA3 and biases of a whole batch at one site: gathered weights, batched products.

Knows vectors and groups; a layer costs one product for all A of the site, and one for the B of each
linear map, whoever and however many the tenants are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from services.common.adapter_format import Site
from services.executor.adapters.arena import Arena
from services.executor.adapters.groups import RowGroup
from services.executor.adapters.packing import LORA_A, LORA_B, Table
from services.executor.adapters.slots import Gather, IntArray, Slot, gather, numbers_of
from services.executor.models.segments import Segments


@dataclass(frozen=True, slots=True)
class _Map:
    """One linear map's share: its ranks among the site's, and its columns of y."""

    ranks: slice
    columns: slice


class LowRank:
    """`y += (x A^T) B` for the rows with LoRA at a site; B has the scale in it.

    A and B of all the site's maps are gathered together, map after map.

    Args:
        widths: Input width of the site and output width of each of its maps.
        num_parts: Linear maps of the site.
    """

    def __init__(
        self, arena: Arena, slots: Sequence[Slot], group: RowGroup, site: Site,
        widths: tuple[int, int], num_parts: int,
    ) -> None:  # fmt: skip
        self._group = group
        self._maps: list[_Map] = []
        chosen = [slots[row] for row in group.rows]
        width_in, width_out = widths
        all_a: list[IntArray] = []
        all_b: list[IntArray] = []
        rank = 0
        for part in range(num_parts):
            a, b = (
                numbers_of([slot.tables.get(table) for slot in chosen], each)
                for table, each in (
                    (Table(LORA_A, site, part), arena.rows_of(width_in)),
                    (Table(LORA_B, site, part), arena.rows_of(width_out)),
                )
            )
            if a is None or b is None:
                continue
            all_a.append(a)
            all_b.append(b)
            columns = slice(part * width_out, (part + 1) * width_out)
            self._maps.append(_Map(slice(rank, rank + a.shape[2]), columns))
            rank += a.shape[2]
        self._a = Gather(arena, np.concatenate(all_a, axis=2), width_in)
        self._b = Gather(arena, np.concatenate(all_b, axis=2), width_out)

    @staticmethod
    def of(
        arena: Arena, slots: Sequence[Slot], segments: Segments, site: Site,
        widths: tuple[int, int], num_parts: int,
    ) -> LowRank | None:  # fmt: skip
        """The site's LoRA, or None if no row has any."""
        tables = [Table(LORA_A, site, part) for part in range(num_parts)]
        has = [any(table in slot.tables for table in tables) for slot in slots]
        if not any(has):
            return None
        group = RowGroup(segments, has)
        return LowRank(arena, slots, group, site, widths, num_parts)

    def add(self, layer: int, x: Tensor, y: Tensor) -> None:
        """Add to `y` `[tokens, outputs]`, in place, for the site's input `x` `[tokens, inputs]`."""
        if not self._a.in_layer[layer]:
            return
        group = self._group
        u = torch.bmm(group.pad(x), self._a.of(layer).transpose(1, 2))
        all_b = self._b.of(layer)
        for part in self._maps:
            columns, b = y[:, part.columns], all_b[:, part.ranks]
            if group.is_view:
                group.view(columns).baddbmm_(u[:, :, part.ranks], b)
            else:
                group.add(columns, group.segments.unpad(torch.bmm(u[:, :, part.ranks], b)))


class Vectors:
    """One vector a row at a place: a bias change, or a scale less one.

    Args:
        columns: The part of the packed tensor it concerns.
    """

    def __init__(self, vectors: Gather, group: RowGroup, columns: slice) -> None:
        self._vectors = vectors
        self._group = group
        self._columns = columns

    @staticmethod
    def of(
        arena: Arena, slots: Sequence[Slot], segments: Segments, table: Table, width: int
    ) -> Vectors | None:
        """The table's vectors, or None if no row has any."""
        has = [table in slot.tables for slot in slots]
        if not any(has):
            return None
        group = RowGroup(segments, has)
        vectors = gather(arena, [slots[row].tables[table] for row in group.rows], width)
        columns = slice(table.part * width, (table.part + 1) * width)
        return None if vectors is None else Vectors(vectors, group, columns)

    def add(self, layer: int, y: Tensor) -> None:
        """Add to `y`, in place."""
        if self._vectors.in_layer[layer]:
            self._group.add(y[:, self._columns], self._spread(layer))

    def scale(self, layer: int, y: Tensor) -> None:
        """Multiply `y` by one plus the vectors, in place."""
        if self._vectors.in_layer[layer]:
            columns = y[:, self._columns]
            picked = self._group.pick(columns)
            self._group.add(columns, picked * self._spread(layer))

    def _spread(self, layer: int) -> Tensor:
        return self._group.spread(self._vectors.of(layer)[:, 0])
