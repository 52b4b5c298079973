"""Linear maps on a CPU: weights laid out once, and rows with the same bits in whatever company.

Knows one product and the activation that may follow it; does not know layers, nor what rows mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from services.common.base_config import Activation
from services.executor.models.weights import Linear

# Kernels for other numbers of rows may sum in another order, and so round otherwise. Products of
# RULE rows are the rule; a product of another number is made at once only if it sums as they do.
RULE = 64
_PIECE = 192  # rows to try next where so many sum otherwise; more of them gain little

# What oneDNN calls them, and its algorithm.
_AFTER_PRODUCT: dict[Activation | None, tuple[str, str]] = {
    None: ("none", ""),
    Activation.GELU: ("gelu", "none"),
    Activation.GELU_TANH: ("gelu", "tanh"),
    Activation.RELU: ("relu", ""),
    Activation.SILU: ("swish", ""),
}
# In place: a product is nobody else's.
_IN_PLACE: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.GELU: torch.ops.aten.gelu_,
    Activation.GELU_TANH: partial(torch.ops.aten.gelu_, approximate="tanh"),
    Activation.RELU: torch.relu_,
    Activation.SILU: torch.ops.aten.silu_,
}


@dataclass(frozen=True, slots=True)
class PackedLinear(Linear):
    """A linear map whose `weight` lies as oneDNN multiplies it: opaque, but for its shape.

    The map it was made of, but for rounding. For inference alone: it has no gradient.

    Attributes:
        activation: Follows inside the product, before anything is rounded.
    """

    activation: Activation | None = None

    def __call__(self, x: Tensor) -> Tensor:
        name, algorithm = _AFTER_PRODUCT[self.activation]
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, name, [], algorithm
        )
        return y


def pack(linear: Linear) -> Linear:
    """The map packed, where that makes it faster; else itself.

    In bfloat16 oneDNN lays weights out anew in each call unless they are packed, which takes as
    long as multiplying a few hundred rows; in float32 nothing is gained, nor by few outputs.
    """
    weight = linear.weight.detach()
    gains = (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and len(weight) >= RULE
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    if not gains:
        return linear
    mkldnn: Any = torch.ops.mkldnn
    laid_out = mkldnn._reorder_linear_weight(weight.contiguous(), _PIECE)
    return PackedLinear(laid_out, linear.bias.detach())


class Kind(NamedTuple):
    """What decides, beside the number of rows and of threads, which kernel makes a product."""

    outputs: int
    inputs: int
    dtype: torch.dtype
    is_packed: bool
    activation: Activation | None


class Product:
    """A linear map of `[rows, inputs]` on a CPU. For inference; may be called from any thread.

    Args:
        activation: What follows it.
    """

    def __init__(self, linear: Linear, activation: Activation | None = None) -> None:
        packed = pack(linear)
        outputs, inputs = linear.weight.shape
        is_packed = isinstance(packed, PackedLinear)
        self._kind = Kind(outputs, inputs, linear.weight.dtype, is_packed, activation)
        self._multiply = _followed(packed, activation)

    def __call__(self, x: Tensor) -> Tensor:
        """`[rows, outputs]`; a row of it depends on the same row of `x` alone, to the bit."""
        pieces = _pieces(self._kind, len(x), torch.get_num_threads())
        if len(pieces) == 1 and pieces[0] == len(x):
            return self._multiply(x)
        num_missing = sum(pieces) - len(x)
        filled = F.pad(x, (0, 0, 0, num_missing)) if num_missing else x
        parts = [self._multiply(part) for part in torch.split(filled, pieces)]
        return torch.cat(parts)[: len(x)]


def _followed(linear: Linear, activation: Activation | None) -> Callable[[Tensor], Tensor]:
    """The map and its activation."""
    if activation is None:
        return linear
    if isinstance(linear, PackedLinear):
        return replace(linear, activation=activation)
    follow = _IN_PLACE[activation]
    return lambda x: follow(linear(x))


@cache
def _pieces(kind: Kind, num_rows: int, num_threads: int) -> list[int]:
    """How many rows to multiply at a time; together at least `num_rows`."""
    if sums_alike(kind, num_rows, num_threads):
        return [num_rows]
    if num_rows > _PIECE and sums_alike(kind, _PIECE, num_threads):
        return [_PIECE, *_pieces(kind, num_rows - _PIECE, num_threads)]
    return [RULE] * -(-num_rows // RULE)


@cache
def sums_alike(kind: Kind, num_rows: int, num_threads: int) -> bool:
    """Whether so many rows at once are summed in the order of `RULE` rows.

    The order depends on shapes, not on values. The test's sums all cancel: what is left of each is
    its rounding errors alone, which hardly ever agree in another order.

    Args:
        num_threads: Of the calling thread, as it is now; part of the cached question.
    """
    if num_rows == RULE:
        return True
    generator = torch.Generator().manual_seed(num_rows)
    half = kind.inputs // 2
    order = torch.randperm(kind.inputs, generator=generator)

    def twice(rows: int, sign: int) -> Tensor:
        values = torch.randn(rows, half, generator=generator).to(kind.dtype)
        odd = values.new_zeros(rows, kind.inputs - 2 * half)
        return torch.cat([values, sign * values, odd], dim=1)[:, order].contiguous()

    linear = Linear(twice(kind.outputs, 1), torch.zeros(kind.outputs, dtype=kind.dtype))
    multiply = _followed(pack(linear) if kind.is_packed else linear, kind.activation)
    x = twice(-(-num_rows // RULE) * RULE, -1)
    by_rule = torch.cat([multiply(part) for part in torch.split(x, RULE)])[:num_rows]
    return torch.equal(multiply(x[:num_rows]), by_rule)
