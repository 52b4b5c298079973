"""Turns an admitted version into rows of the arena: one host tensor and tables of row numbers.

Everything an adapter holds becomes vectors; a vector of width `k * hidden` takes k rows. The number
0 stands for the arena's row of zeros, and every kind of vector is written so that zeros change
nothing. Knows shapes and scales; does not know where the rows will lie or who uses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common.adapter_format import (
    AdmittedVersion,
    BiasKind,
    Bottleneck,
    Head,
    Lora,
    Site,
)
from services.common.base_config import BaseConfig
from services.common.errors import FailedPrecondition, InvalidArgument
from services.executor.adapters.pooler import own_pooler

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]

# float32 tensor of the base by its name without the model's prefix (`pooler.dense.weight`).
BaseTensor = Callable[[str], FloatArray]


class Table(NamedTuple):
    """Which vectors: `part` is the linear map of a site, or the depth of a head's layer."""

    kind: str
    site: Site | str = ""
    part: int = 0


# Kinds of vectors inside the layers.
LORA_A = "lora_a"
LORA_B = "lora_b"
OUTPUT_SCALE = "output_scale"  # stored less one
INPUT_SCALE = "input_scale"  # stored less one
BIAS = "bias"  # stored less the base's
NORM_BIAS = "norm_bias"  # stored less the base's
EMBEDDING_BIAS = "embedding_bias"  # stored less the base's
DOWN = "down"
DOWN_BIAS = "down_bias"
UP = "up"  # transposed and scaled
UP_BIAS = "up_bias"  # scaled
NORM_BEFORE = "norm_before"  # weight, bias
NORM_AFTER = "norm_after"  # weight, bias
HEAD = "head"
HEAD_BIAS = "head_bias"


@dataclass(slots=True)
class Packed:
    """An adapter in host memory.

    Attributes:
        rows: `[num_rows, hidden]` in the compute dtype.
        tables: int64 `[layers, vectors, rows a vector]`, row numbers from 1; 0 is no row. Heads
            have one layer.
        bottlenecks: By layer and site.
    """

    rows: Tensor
    tables: dict[Table, IntArray]
    bottlenecks: dict[tuple[int, Site], Bottleneck]
    head: Head

    @property
    def num_rows(self) -> int:
        return len(self.rows)

    @property
    def size_bytes(self) -> int:
        """Bytes of the rows and tables."""
        tables = sum(table.nbytes for table in self.tables.values())
        return self.rows.numel() * self.rows.element_size() + tables


def pack(
    version: AdmittedVersion,
    base: BaseConfig,
    *,
    dtype: torch.dtype,
    base_tensor: BaseTensor | None = None,
    pin_memory: bool = False,
) -> Packed:
    """The version's rows and tables.

    Args:
        base_tensor: Reads the base; needed by versions that replace its biases or change its
            pooler.

    Raises:
        FailedPrecondition: It is needed and not given.
        InvalidArgument: A number overflows when it is scaled or rounded to `dtype`.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused at the end
        return _Packing(version, base, base_tensor).run(dtype, pin_memory)


@dataclass(slots=True)
class _Packing:
    version: AdmittedVersion
    base: BaseConfig
    base_tensor: BaseTensor | None
    blocks: list[FloatArray] = field(default_factory=list)
    num_rows: int = 0
    tables: dict[Table, IntArray] = field(default_factory=dict)

    def run(self, dtype: torch.dtype, pin_memory: bool) -> Packed:
        for lora in self.version.loras:
            self._lora(lora)
        for scaling in self.version.scalings:
            if scaling.place is not None:
                kind = INPUT_SCALE if scaling.of_input else OUTPUT_SCALE
                table = Table(kind, scaling.place.site, scaling.place.part)
                vector = self._array(scaling.vector).reshape(1, -1)
                self._put(table, scaling.place.layer, vector - np.float32(1))
        self._biases()
        for bottleneck in self.version.bottlenecks:
            self._bottleneck(bottleneck)
        self._head()
        rows = np.concatenate(self.blocks or [np.zeros((0, self.base.hidden_size), np.float32)])
        tensor = torch.from_numpy(rows).to(dtype)
        if not bool(torch.isfinite(tensor).all()):
            raise InvalidArgument(
                "tensors",
                f"scaled, and in {str(dtype).removeprefix('torch.')}, a number is not finite",
                reason="NOT_FINITE",
            )
        return Packed(
            rows=tensor.pin_memory() if pin_memory else tensor,
            tables=self.tables,
            bottlenecks={(b.layer, b.site): b for b in self.version.bottlenecks},
            head=self.version.head,
        )

    def _array(self, name: str) -> FloatArray:
        return self.version.tensors.array(name)

    def _put(self, table: Table, layer: int, vectors: FloatArray, *, num_layers: int = 0) -> None:
        """Append `[count, width]` vectors as rows and note their numbers."""
        hidden = self.base.hidden_size
        count, width = vectors.shape
        rows_each = -(-width // hidden)
        padded = np.zeros((count, rows_each * hidden), np.float32)
        padded[:, :width] = vectors
        numbers = np.arange(1, count * rows_each + 1).reshape(count, rows_each) + self.num_rows
        self.blocks.append(padded.reshape(-1, hidden))
        self.num_rows += count * rows_each
        old = self.tables.get(table)
        height = max(count, 0 if old is None else old.shape[1])
        depth = max(rows_each, 0 if old is None else old.shape[2])
        grown = np.zeros((num_layers or self.base.num_layers, height, depth), np.int64)
        if old is not None:
            grown[:, : old.shape[1], : old.shape[2]] = old
        grown[layer, :count, :rows_each] = numbers
        self.tables[table] = grown

    def _lora(self, lora: Lora) -> None:
        place = lora.place
        if place is None:
            return
        self._put(Table(LORA_A, place.site, place.part), place.layer, self._array(lora.a))
        scaled = self._array(lora.b).T * np.float32(lora.scale)
        self._put(Table(LORA_B, place.site, place.part), place.layer, scaled)

    def _biases(self) -> None:
        for bias in self.version.biases:
            if bias.kind is BiasKind.POOLER:
                continue
            change = (self._array(bias.tensor) - self._of_base(bias.base_name)).reshape(1, -1)
            place = bias.place
            if place is None:
                self._put(Table(EMBEDDING_BIAS), 0, change)
            elif bias.kind is BiasKind.NORM:
                self._put(Table(NORM_BIAS, place.site), place.layer, change)
            else:
                self._put(Table(BIAS, place.site, place.part), place.layer, change)

    def _bottleneck(self, part: Bottleneck) -> None:
        learned = isinstance(part.scaling, str)
        scale = self._array(str(part.scaling)) if learned else np.float32(part.scaling)
        vectors = {
            DOWN: self._array(part.down),
            DOWN_BIAS: self._array(part.down_bias).reshape(1, -1),
            UP: self._array(part.up).T * scale,
            UP_BIAS: (self._array(part.up_bias) * scale).reshape(1, -1),
        }
        for kind, names in ((NORM_BEFORE, part.norm_before), (NORM_AFTER, part.norm_after)):
            if names is not None:
                vectors[kind] = np.stack([self._array(name) for name in names])
        for kind, values in vectors.items():
            self._put(Table(kind, part.site), part.layer, values)

    def _head(self) -> None:
        for depth, dense in enumerate(self.version.head.layers):
            bias: FloatArray | None
            if dense.weight is None:
                weight, bias = own_pooler(self.version, self._of_base)
            else:
                weight = self._array(dense.weight)
                bias = None if dense.bias is None else self._array(dense.bias)
            self._put(Table(HEAD, "", depth), 0, weight, num_layers=1)
            if bias is not None:
                self._put(Table(HEAD_BIAS, "", depth), 0, bias.reshape(1, -1), num_layers=1)

    def _of_base(self, name: str) -> FloatArray:
        if self.base_tensor is None:
            raise FailedPrecondition(
                f"the version changes the base's {name}, and the base's tensors are not at hand"
            )
        return self.base_tensor(name)
