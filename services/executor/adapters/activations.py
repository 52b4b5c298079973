"""Non-linearities of adapters and heads, chosen by row.

The functions are `transformers`' of the same names, which AdapterHub uses.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _gelu_accurate(x: Tensor) -> Tensor:
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + torch.tanh(inner))


def _gelu_fast(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(x * 0.7978845608 * (1 + 0.044715 * x * x)))


FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": _gelu_tanh,
    "gelu_pytorch_tanh": _gelu_tanh,
    "gelu_python_tanh": _gelu_tanh,
    "gelu_accurate": _gelu_accurate,
    "gelu_fast": _gelu_fast,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "swish": F.silu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "leakyrelu": F.leaky_relu,
    "leaky_relu": F.leaky_relu,
    "relu2": lambda x: F.relu(x).square(),
    "relu6": F.relu6,
    "linear": lambda x: x,
}


def activate(x: Tensor, names: Sequence[str]) -> Tensor:
    """`[rows, len, width]` through each row's function; every distinct one is computed once."""
    distinct = sorted(set(names))
    out = FUNCTIONS[distinct[0]](x)
    for name in distinct[1:]:
        mask = torch.tensor([row == name for row in names], device=x.device)[:, None, None]
        out = torch.where(mask, FUNCTIONS[name](x), out)
    return out
