"""The seam between a frozen layer and what adapters add to it.

A *site* is a place where a layer's linear maps read one tensor. The encoder calls the bypass at
each site of each layer; the bypass adds every row's own task knowledge before anything is reduced
or normalised (FlexLLM, section 5: bypass networks; design section 9). The encoder knows no adapter,
and an adapter knows no encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Protocol

from torch import Tensor


class Site(StrEnum):
    """Where a layer can be adapted, with the linear maps (in order) that read the site's input."""

    ATTENTION_INPUT = "attention_input"  # query, key, value: [tokens, hidden] -> [tokens, 3 hidden]
    ATTENTION_OUTPUT = "attention_output"  # dense: [tokens, hidden] -> [tokens, hidden]
    FFN_INPUT = "ffn_input"  # dense: [tokens, hidden] -> [tokens, intermediate]
    FFN_OUTPUT = "ffn_output"  # dense: [tokens, intermediate] -> [tokens, hidden]


Norm = Callable[[Tensor], Tensor]


class Bypass(Protocol):
    """What a batch's adapters do at each site.

    Tensors are packed `[tokens, width]` in the compute dtype, of all the rows it was made for.
    """

    def prefix(self, num_rows: int) -> Bypass:
        """The bypass of the first `num_rows` rows: those that have entered by some layer."""
        ...

    def scale_input(self, layer: int, site: Site, x: Tensor) -> Tensor:
        """The site's input, scaled (IA3 on a feed-forward layer), or `x` itself."""
        ...

    def add(self, layer: int, site: Site, x: Tensor, y: Tensor) -> Tensor:
        """The linear maps' output `y` for input `x`, with low-rank terms, biases and scales.

        May change `y` in place. `y` is [tokens, sum of the site's output widths].
        """
        ...

    def close(self, layer: int, site: Site, y: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        """The end of a half layer: `norm(y + residual)`, with bottleneck adapters in their places.

        Called for ATTENTION_OUTPUT and FFN_OUTPUT after `add`.
        """
        ...


class NoBypass:
    """No adapter on any row."""

    def prefix(self, num_rows: int) -> NoBypass:
        return self

    def scale_input(self, layer: int, site: Site, x: Tensor) -> Tensor:
        return x

    def add(self, layer: int, site: Site, x: Tensor, y: Tensor) -> Tensor:
        return y

    def close(self, layer: int, site: Site, y: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        return norm(y + residual)
