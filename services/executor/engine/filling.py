"""Batches filled up to a round number of tokens.

A bfloat16 product on a CPU compiles a kernel for each number of rows that it has not met lately,
which takes longer than a small product does. With traffic of many lengths every batch would be new.
Knows numbers of tokens only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from services.executor.models.segments import Segments

_SMALL, _LARGE = 16, 32  # steps below and from this many tokens
_MANY = 128


def fill(hidden: Tensor, segments: Segments) -> tuple[Tensor, Segments]:
    """The batch with a row of zeros at its end, where that makes its number of tokens round.

    Args:
        hidden: `[tokens, hidden]`.

    Returns:
        The batch itself on a device, or in a dtype, that does not care; and where rows are all of
        one length, which is rare in traffic: such rows are computed without a copy, and a row of
        another length would end that.
    """
    is_even = segments.is_uniform and segments.num_rows > 1
    step = _LARGE if segments.num_tokens > _MANY else _SMALL
    num_missing = -segments.num_tokens % step
    does_care = hidden.device.type == "cpu" and hidden.dtype is torch.bfloat16
    if not does_care or is_even or not num_missing:
        return hidden, segments
    filled = Segments([*segments.lengths, num_missing], segments.device)
    return F.pad(hidden, (0, 0, 0, num_missing)), filled
