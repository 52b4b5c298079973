"""Bottleneck adapters of a whole batch at the end of a half layer.

Implements `adapters`' Adapter (see `adapter_format.spec.Bottleneck`) for rows whose options differ:
an option on which the rows agree costs nothing, otherwise both ways are computed and chosen by row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from services.common.adapter_format import Bottleneck, Site
from services.executor.adapters.activations import activate
from services.executor.adapters.arena import Arena
from services.executor.adapters.groups import RowGroup
from services.executor.adapters.packing import (
    DOWN,
    DOWN_BIAS,
    NORM_AFTER,
    NORM_BEFORE,
    UP,
    UP_BIAS,
    Table,
)
from services.executor.adapters.slots import Slot, gather
from services.executor.models.segments import Segments

Norm = Callable[[Tensor], Tensor]
_NORM_EPS = 1e-5  # torch.nn.LayerNorm's, which `adapters` uses for its own norms


class Bottlenecks:
    """The bottleneck adapters at a site, of the rows that have one in any layer.

    In a layer that a row's adapter leaves out, the row's vectors are zeros and its options those
    that make the plain `norm(y + residual)`.
    """

    def __init__(
        self, arena: Arena, slots: Sequence[Slot], group: RowGroup, site: Site, hidden: int
    ) -> None:
        self._group = group
        chosen = [slots[row] for row in group.rows]
        num_layers = next(s.tables[Table(DOWN, site)].shape[0] for s in chosen)
        self._specs: list[list[Bottleneck | None]] = [
            [slot.bottlenecks.get((layer, site)) for slot in chosen] for layer in range(num_layers)
        ]
        size = max(slot.tables[Table(DOWN, site)].shape[1] for slot in chosen)
        widths = {DOWN: hidden, UP: hidden, UP_BIAS: hidden, DOWN_BIAS: size,
                  NORM_BEFORE: hidden, NORM_AFTER: hidden}  # fmt: skip
        self._vectors = {
            kind: gather(arena, [slot.tables.get(Table(kind, site)) for slot in chosen], width)
            for kind, width in widths.items()
        }

    @staticmethod
    def of(
        arena: Arena, slots: Sequence[Slot], segments: Segments, site: Site, hidden: int
    ) -> Bottlenecks | None:
        """The site's bottlenecks, or None if no row has one."""
        table = Table(DOWN, site)
        has = [table in slot.tables for slot in slots]
        if not any(has):
            return None
        return Bottlenecks(arena, slots, RowGroup(segments, has), site, hidden)

    def in_layer(self, layer: int) -> bool:
        return any(spec is not None for spec in self._specs[layer])

    def close(self, layer: int, y: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        """`[tokens, hidden]`: the half layer's end for every row, with or without a bottleneck."""
        specs = self._specs[layer]
        before = [spec is None or spec.original_ln_before for spec in specs]
        group = self._group
        added = y + residual
        normed = norm(added) if any(before) or not group.is_all else added
        h = self._choose(before, group.pad(normed), group.pad(y))
        kinds = ["after_norm" if spec is None else spec.residual for spec in specs]
        kept = self._choose([kind == "before_norm" for kind in kinds], group.pad(y), h)
        kept = self._choose([kind == "post_add" for kind in kinds], group.pad(added), kept)
        out = self._inner(layer, specs, h, kept)
        after = [spec is not None and spec.original_ln_after for spec in specs]
        if any(after):
            out = self._choose(after, norm(out + group.pad(residual)), out)
        return group.put(normed, group.segments.unpad(out))

    def _inner(
        self, layer: int, specs: Sequence[Bottleneck | None], h: Tensor, kept: Tensor
    ) -> Tensor:
        """Down, activation, up, and the adapter's own norms and residual: `[rows, len, hidden]`."""
        x = self._own_norm(
            NORM_BEFORE, layer, h, [s is not None and bool(s.norm_before) for s in specs]
        )
        z = torch.baddbmm(self._of(DOWN_BIAS, layer), x, self._of(DOWN, layer).transpose(1, 2))
        z = activate(z, ["linear" if s is None else s.activation for s in specs])
        out = torch.baddbmm(self._of(UP_BIAS, layer), z, self._of(UP, layer))
        first = [spec is not None and spec.inner_residual_first for spec in specs]
        if any(first):
            out = self._choose(first, out + kept, out)
        out = self._own_norm(
            NORM_AFTER, layer, out, [s is not None and bool(s.norm_after) for s in specs]
        )
        return self._choose(first, out, out + kept)

    def _own_norm(self, kind: str, layer: int, x: Tensor, has: Sequence[bool]) -> Tensor:
        if not any(has):
            return x
        vectors = self._of(kind, layer)
        normed = F.layer_norm(x, x.shape[-1:], eps=_NORM_EPS) * vectors[:, :1] + vectors[:, 1:]
        return self._choose(has, normed, x)

    def _of(self, kind: str, layer: int) -> Tensor:
        vectors = self._vectors[kind]
        if vectors is None:
            raise LookupError(kind)  # packing writes every kind that a spec has
        return vectors.of(layer)

    def _choose(self, takes_first: Sequence[bool], first: Tensor, second: Tensor) -> Tensor:
        """`first` for the rows that take it, `second` for the others."""
        if all(takes_first):
            return first
        if not any(takes_first):
            return second
        mask = torch.tensor(takes_first, device=first.device)[:, None, None]
        return torch.where(mask, first, second)
