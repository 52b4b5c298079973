"""LoRA, IA3 and biases of a whole batch at one site: gathered weights, batched products.

Knows vectors and groups; a layer costs one product for all A of the site, and one for the B of each
linear map, whoever and however many the tenants are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from services.common.adapter_format import Site
from services.executor.adapters.arena import Arena
from services.executor.adapters.groups import RowGroup
from services.executor.adapters.packing import LORA_A, LORA_B, Table
from services.executor.adapters.slots import Gather, Slot, gather
from services.executor.models.segments import Segments


@dataclass(frozen=True, slots=True)
class _Map:
    """One linear map's share: its ranks among the site's, its columns of y, its B."""

    ranks: slice
    columns: slice
    b: Gather


class LowRank:
    """`y += (x A^T) B` for the rows with LoRA at a site; B has the scale in it.

    Args:
        widths: Input width of the site and output width of each of its maps.
        num_parts: Linear maps of the site.
    """

    def __init__(
        self, arena: Arena, slots: Sequence[Slot], group: RowGroup, site: Site,
        widths: tuple[int, int], num_parts: int,
    ) -> None:  # fmt: skip
        self._group = group
        self._a: list[Gather] = []
        self._maps: list[_Map] = []
        width_in, width_out = widths
        rank = 0
        for part in range(num_parts):
            a = gather(arena, slots, Table(LORA_A, site, part), width_in, group.rows)
            b = gather(arena, slots, Table(LORA_B, site, part), width_out, group.rows)
            if a is None or b is None:
                continue
            columns = slice(part * width_out, (part + 1) * width_out)
            self._a.append(a)
            self._maps.append(_Map(slice(rank, rank + a.num_vectors), columns, b))
            rank += a.num_vectors

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
        if not any(a.in_layer[layer] for a in self._a):
            return
        group = self._group
        a = (
            torch.cat([a.of(layer) for a in self._a], 1)
            if len(self._a) > 1
            else self._a[0].of(layer)
        )
        u = torch.bmm(group.pad(x), a.transpose(1, 2))
        for part in self._maps:
            b = part.b.of(layer)
            columns = y[:, part.columns]
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
        vectors = gather(arena, slots, table, width, group.rows)
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
