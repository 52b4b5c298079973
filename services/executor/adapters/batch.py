"""What a batch's adapters do inside the layers: the encoder's bypass over gathered weights.

Built once a batch from its slots, for all layers. The compute path has no loop over rows or
tenants: rows without a kind of adapter cost that kind nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from services.common.adapter_format import Place
from services.common.adapter_format import Site as FormatSite
from services.common.adapter_format.modules import sizes
from services.common.base_config import BaseConfig
from services.executor.adapters.arena import Arena
from services.executor.adapters.bottlenecks import Bottlenecks
from services.executor.adapters.low_rank import LowRank, Vectors
from services.executor.adapters.packing import (
    BIAS,
    EMBEDDING_BIAS,
    INPUT_SCALE,
    NORM_BIAS,
    OUTPUT_SCALE,
    Table,
)
from services.executor.adapters.slots import Slot
from services.executor.models.bypass import Bypass, Norm, Site
from services.executor.models.segments import Segments


class BatchBypass:
    """The bypass of a batch whose rows have these slots. Implements `Bypass`.

    Args:
        slots: One a row, all held by the caller until the batch is done. Rows beyond them have no
            adapter.
    """

    def __init__(
        self, arena: Arena, base: BaseConfig, slots: Sequence[Slot], segments: Segments
    ) -> None:
        self._arena = arena
        self._base = base
        self._slots = slots
        self._segments = segments
        self._sites = {site: _SiteAdapters(arena, base, slots, segments, site) for site in Site}
        self._embedding_bias = Vectors.of(
            arena, slots, segments, Table(EMBEDDING_BIAS), base.hidden_size
        )

    def prefix(self, num_rows: int) -> Bypass:
        """The bypass of the batch's first rows alone."""
        return BatchBypass(
            self._arena, self._base, self._slots[:num_rows], self._segments.prefix(num_rows)
        )

    def scale_input(self, layer: int, site: Site, x: Tensor) -> Tensor:
        if layer == 0 and site is Site.ATTENTION_INPUT and self._embedding_bias is not None:
            # In place: the same tensor is the residual of layer 0.
            self._embedding_bias.add(0, x)
        return self._sites[site].scale_input(layer, x)

    def add(self, layer: int, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return self._sites[site].add(layer, x, y)

    def close(self, layer: int, site: Site, y: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        return self._sites[site].close(layer, y, residual, norm)


class _SiteAdapters:
    """All kinds of adapters at one site."""

    def __init__(
        self, arena: Arena, base: BaseConfig, slots: Sequence[Slot], segments: Segments, site: Site
    ) -> None:
        where = FormatSite(site.value)
        width_in, width_out = sizes(base, Place(0, where))
        num_parts = 3 if site is Site.ATTENTION_INPUT else 1
        hidden = base.hidden_size

        def vectors(kind: str, part: int, width: int) -> Vectors | None:
            return Vectors.of(arena, slots, segments, Table(kind, where, part), width)

        self._input_scale = vectors(INPUT_SCALE, 0, width_in)
        self._low_rank = LowRank.of(arena, slots, segments, where, (width_in, width_out), num_parts)
        parts = range(num_parts)
        self._biases = [v for p in parts if (v := vectors(BIAS, p, width_out))]
        self._scales = [v for p in parts if (v := vectors(OUTPUT_SCALE, p, width_out))]
        self._bottlenecks = Bottlenecks.of(arena, slots, segments, where, hidden)
        self._norm_bias = vectors(NORM_BIAS, 0, hidden)

    def scale_input(self, layer: int, x: Tensor) -> Tensor:
        if self._input_scale is None:
            return x
        scaled = x.clone()  # x may be a residual too
        self._input_scale.scale(layer, scaled)
        return scaled

    def add(self, layer: int, x: Tensor, y: Tensor) -> Tensor:
        if self._low_rank is not None:
            self._low_rank.add(layer, x, y)
        for bias in self._biases:
            bias.add(layer, y)
        for scale in self._scales:
            scale.scale(layer, y)
        return y

    def close(self, layer: int, y: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        if self._bottlenecks is not None and self._bottlenecks.in_layer(layer):
            out = self._bottlenecks.close(layer, y, residual, norm)
        else:
            out = norm(y + residual)
        if self._norm_bias is not None:
            self._norm_bias.add(layer, out)
        return out
