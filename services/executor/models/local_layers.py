"""A local encoder's forward pass as a CPU likes it: slots first, weights packed, few copies.

Knows one tile of n-grams; does not know keys, the tiles beside it, or gradients. The same map as
`LocalEncoder.outputs`, which is its oracle; it rounds in other places.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from services.common.base_config import Activation, BaseConfig
from services.executor.models.packed import Product
from services.executor.models.weights import Embeddings, Layer, Linear, Norm

SLOTS = 3
_CENTRE = 1
_VECTOR = 32  # numbers in the widest vector register, of the shortest type


class _Parts(NamedTuple):
    """A layer's maps. `query` is None where `key_value` gives queries too, before them."""

    query: Product | None
    key_value: Product
    attention_output: Product
    attention_norm: Norm
    ffn_input: Product
    ffn_output: Product
    ffn_norm: Norm

    @classmethod
    def of(cls, layer: Layer, activation: Activation, *, is_centre_alone: bool) -> _Parts:
        query, key_value = None, layer.qkv
        if is_centre_alone:
            width = len(layer.qkv.bias) // 3
            weight, bias = layer.qkv.weight, layer.qkv.bias
            query = Product(Linear(weight[:width], bias[:width]))
            key_value = Linear(weight[width:], bias[width:])
        return cls(
            query,
            Product(key_value),
            Product(layer.attention_output),
            layer.attention_norm,
            Product(layer.ffn_input, activation),
            Product(layer.ffn_output),
            layer.ffn_norm,
        )


class LocalLayers:
    """Embeddings, layers and gate over tiles. For inference; may be called from any thread.

    Args:
        embeddings: The base's.
        layers: The local layers.
        gate: As in `LocalWeights`.
        is_centre: Whether the centre's vector alone is put out: the last layer is then computed
            for it alone.

    Attributes:
        step: N-grams of a tile come in multiples of it, so that every elementwise step fills whole
            vectors: what remains is computed otherwise, and may round otherwise.
    """

    def __init__(
        self,
        config: BaseConfig,
        embeddings: Embeddings,
        layers: tuple[Layer, ...],
        gate: Linear,
        *,
        is_centre: bool,
    ) -> None:
        last = len(layers) - 1
        self._layers = [
            _Parts.of(layer, config.activation, is_centre_alone=is_centre and index == last)
            for index, layer in enumerate(layers)
        ]
        self._words, self._embedding_norm = embeddings.words, embeddings.norm
        # An n-gram's slots are the first positions of the first text.
        places = embeddings.positions[config.position_start : config.position_start + SLOTS]
        if embeddings.types is not None:
            places = places + embeddings.types[0]
        self._places = places[:, None]
        # Repeated, so that sigmoids come in whole vectors: those of a remainder round otherwise.
        self._gate = Product(
            Linear(gate.weight.expand(_VECTOR, -1).contiguous(), gate.bias.expand(_VECTOR))
        )
        self._is_centre = is_centre
        self._num_heads, self._head_size = config.num_heads, config.head_size
        self._width = config.hidden_size
        # The narrowest step is that of the weights of attention, `[pairs, n, heads]`.
        self.step = max(_VECTOR // math.gcd(_VECTOR, config.num_heads), _VECTOR // 2)
        # [heads, hidden]: sums a head's products.
        ones = torch.eye(config.num_heads, dtype=self._words.dtype)
        ones = ones.repeat_interleave(config.head_size, dim=1)
        self._sum_by_head = Product(Linear(ones, ones.new_zeros(config.num_heads)))

    def outputs(self, slots: Tensor) -> Tensor:
        """int64 `[n, 3]` n-grams to gated outputs `[n, 1 or 3, hidden]`; absent slots are zero.

        An n-gram's outputs are the same bits in whatever company, if n is a multiple of `step`.
        """
        num, width = len(slots), self._width
        by_slot = slots.t()
        is_absent = (by_slot == 0)[:, :, None]
        x = F.embedding((by_slot - 1).clamp_min(0), self._words) + self._places
        x = self._embedding_norm(x).view(SLOTS * num, width)
        # [1, 3, n, 1]: minus infinity where nothing is to be attended to.
        mask = x.new_zeros(SLOTS, num, 1).masked_fill_(is_absent, float("-inf"))[None]
        # One piece of memory for all layers' products: it stays in the cache.
        products = x.new_empty(SLOTS, SLOTS, num, width)
        for parts in self._layers:
            x = self._layer(parts, x, mask, products)
        x = x * torch.sigmoid(self._gate(x))[:, :1]
        x = x.view(-1, num, width)
        if not self._is_centre:
            x = x.masked_fill_(is_absent, 0.0)
        return x.transpose(0, 1)

    def _layer(self, parts: _Parts, x: Tensor, mask: Tensor, products: Tensor) -> Tensor:
        """`[3 n, hidden]` to the same, or to `[n, hidden]` of the centres."""
        num, width = mask.shape[2], self._width
        seen = parts.key_value(x).view(SLOTS, num, -1)
        if parts.query is None:
            asked, query = x, seen[..., :width]
        else:
            asked = x.view(SLOTS, num, width)[_CENTRE]
            query = parts.query(asked).view(1, num, width)
        key, value = seen[..., -2 * width :].chunk(2, dim=-1)
        context = self._attend(query, key, value, mask, products[: len(query)])
        x = parts.attention_norm(parts.attention_output(context).add_(asked))
        return parts.ffn_norm(parts.ffn_output(parts.ffn_input(x)).add_(x))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, products: Tensor
    ) -> Tensor:
        """`[asked, n, hidden]` attending to `[3, n, hidden]`: `[asked * n, hidden]`.

        Products by pair of slots lie in `products` `[asked, 3, n, hidden]`, which is overwritten.
        A product with ones sums them by head; copying spreads the weights over a head again.
        """
        torch.mul(query[:, None], key[None], out=products)
        scores = self._sum_by_head(products.view(-1, self._width))
        scores = scores.view(*products.shape[:3], self._num_heads)
        weights = scores.mul_(self._head_size**-0.5).add_(mask).softmax(1)
        spread = products.view(*weights.shape, self._head_size)
        spread.copy_(weights[..., None])
        weighted = products.mul_(value)
        context = weighted[:, 0] + weighted[:, 1]
        return context.add_(weighted[:, 2]).view(-1, self._width)
