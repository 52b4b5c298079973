"""The local encoder of a split base: lower layers that see one n-gram at a time.

Knows the layers, the gate and what turns looked-up rows into the input of the first global layer;
does not know tables, misses or batches. Sources: SkipBERT (Wang et al., ACL 2022), section 3; HMI
(arXiv 2504.17449).

An n-gram has three slots: left, centre, right. A slot holds a token id plus one; 0 is absent, and
an absent slot is neither attended to nor put out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from services.common.base_config import BaseConfig
from services.common.local_encoder_format import Form
from services.executor.models.encoder import ACTIVATIONS, Encoder
from services.executor.models.local_layers import LocalLayers
from services.executor.models.segments import Segments
from services.executor.models.weights import Embeddings, Layer, Linear, Norm

LEFT, CENTRE, RIGHT = range(3)
_SLOT_BITS = 21
_SLOT_MASK = (1 << _SLOT_BITS) - 1

TILE = 64  # n-grams computed at a time on a device
LARGEST_TILE = 192  # and at most on a CPU: weights are read once for all, caches hold the rest


@dataclass(frozen=True, slots=True)
class LocalWeights:
    """What a local encoder has of its own; word embeddings are the base's.

    Attributes:
        layers: The local layers.
        gate: `[1, hidden]`: a vector is multiplied by sigmoid(gate(vector)).
        positions: `[max_tokens, hidden]`: where in the text a token stands; n-grams do not tell.
        types: `[types, hidden]`: which text of a pair it is in; None where the base has no types.
        norm: Over row, position and type together.
    """

    layers: tuple[Layer, ...]
    gate: Linear
    positions: Tensor
    types: Tensor | None
    norm: Norm

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], config: BaseConfig) -> Self:
        """The weights under the names of `local_encoder.safetensors`."""

        def linear(name: str) -> Linear:
            return Linear(tensors[f"{name}.weight"], tensors[f"{name}.bias"])

        def norm(name: str) -> Norm:
            return Norm(tensors[f"{name}.weight"], tensors[f"{name}.bias"], config.norm_eps)

        num_layers = sum(name.endswith(".qkv.weight") for name in tensors)
        layers = tuple(
            Layer(
                qkv=linear(f"{at}.qkv"),
                attention_output=linear(f"{at}.attention_output"),
                attention_norm=norm(f"{at}.attention_norm"),
                ffn_input=linear(f"{at}.ffn_input"),
                ffn_output=linear(f"{at}.ffn_output"),
                ffn_norm=norm(f"{at}.ffn_norm"),
            )
            for at in (f"layers.{index}" for index in range(num_layers))
        )
        return cls(layers, linear("gate"), tensors["positions"], tensors.get("types"), norm("norm"))


class LocalEncoder:
    """Local layers, gate and merging.

    Args:
        config: The base's sizes.
        embeddings: The base's own.
        weights: Of the same dtype, on the same device. Differentiable if they are.
        form: What rows hold.
    """

    def __init__(
        self, config: BaseConfig, embeddings: Embeddings, weights: LocalWeights, form: Form
    ) -> None:
        self.config = config
        self.weights = weights
        self.form = form
        self.split = len(weights.layers)
        self.num_slots = 1 if form is Form.CENTRE else 3
        self.hidden_size = config.hidden_size
        self.dtype = embeddings.words.dtype
        self.device = embeddings.words.device
        self._embeddings = embeddings
        # [types * positions, hidden], one type after the other: merging adds one row, not two.
        self._places, self._num_types = weights.positions, 1
        if weights.types is not None:
            self._num_types = len(weights.types)
            self._places = (weights.types[:, None] + weights.positions).flatten(0, 1)
        self._activation = ACTIVATIONS[config.activation]

    @classmethod
    def of(cls, base: Encoder, tensors: Mapping[str, Tensor], form: Form) -> Self:
        """A base's local encoder, in the base's dtype on its device."""
        placed = {name: tensor.to(base.device, base.dtype) for name, tensor in tensors.items()}
        weights = LocalWeights.from_tensors(placed, base.config)
        return cls(base.config, base.weights.embeddings, weights, form)

    @torch.inference_mode()
    def rows(self, keys: Tensor) -> Tensor:
        """What a table holds for n-grams.

        Args:
            keys: int64 `[n]`, as services/common/ngrams.py packs them.

        Returns:
            float16 `[n, num_slots, hidden]` on the encoder's device; zeros in absent slots. The
            same bits for an n-gram whatever else is asked for.
        """
        slots = slots_of(keys.to(self.device))
        rows = torch.empty(
            len(slots), self.num_slots, self.hidden_size, dtype=torch.float16, device=self.device
        )
        compute = self.outputs if self._layers is None else self._layers.outputs
        start = 0
        while start < len(slots):
            size = self._tile_size(len(slots) - start)
            tile = slots[start : start + size]
            filled = F.pad(tile, (0, 0, 0, size - len(tile)), value=1)
            rows[start : start + size] = compute(filled)[: len(tile)]
            start += size
        return rows

    def _tile_size(self, num_left: int) -> int:
        """N-grams to compute next. Elsewhere than on a CPU always as many: products of another
        number of rows may take other kernels, which round otherwise."""
        layers = self._layers
        if layers is None:
            return TILE
        return min(-(-num_left // layers.step) * layers.step, LARGEST_TILE)

    @cached_property
    def _layers(self) -> LocalLayers | None:
        """What computes rows on a CPU; made when they are first asked for, so not in training."""
        if self.device.type != "cpu":
            return None
        return LocalLayers(
            self.config,
            self._embeddings,
            self.weights.layers,
            self.weights.gate,
            is_centre=self.form is Form.CENTRE,
        )

    def outputs(self, slots: Tensor) -> Tensor:
        """int64 `[n, 3]` n-grams to gated outputs `[n, num_slots, hidden]`, all at once.

        The simple way, with gradients; `rows` takes `LocalLayers` where that is faster.
        """
        is_present = slots > 0
        x = self._embed(slots)
        for layer in self.weights.layers[:-1]:
            x = self._layer(layer, x, x, is_present)
        # In the last layer only the slots that are put out have anything left to say.
        # (Contiguous: of a strided input `linear` makes a product a row, with a weight each.)
        asked = x[:, CENTRE : CENTRE + 1].contiguous() if self.form is Form.CENTRE else x
        x = self._layer(self.weights.layers[-1], asked, x, is_present)
        x = x * torch.sigmoid(self.weights.gate(x))
        return x if self.form is Form.CENTRE else x * is_present[:, :, None]

    def split_values(self, values: Tensor, segments: Segments) -> Tensor:
        """Each token's row from its text's n-grams: `[tokens, num_slots, hidden]`, one n-gram a
        token, to `[tokens, hidden]`.

        Centre: the n-gram's only vector. Sum: T[i][centre] + T[i+1][left] + T[i-1][right], inside
        the token's own text (SkipBERT, equation 3).
        """
        if self.form is Form.CENTRE:
            return values[:, 0]
        row = values[:, CENTRE].clone()
        is_joined = (segments.row_of_token[1:] == segments.row_of_token[:-1])[:, None]
        row[:-1] += values[1:, LEFT] * is_joined
        row[1:] += values[:-1, RIGHT] * is_joined
        return row

    def merge(
        self,
        rows: Tensor,
        type_ids: Tensor | None,
        segments: Segments,
        position_offsets: Tensor | None = None,
    ) -> Tensor:
        """The input of the first global layer.

        Args:
            rows: `[tokens, hidden]`, of any floating dtype.
            type_ids, position_offsets: As `Encoder.embed`.

        Returns:
            `[tokens, hidden]` in the base's dtype: LayerNorm(row + position + type).
        """
        positions = segments.position_of_token
        if position_offsets is not None:
            positions = positions + position_offsets[segments.row_of_token]
        if type_ids is not None and self._num_types > 1:
            positions = positions + type_ids * len(self.weights.positions)
        return self.weights.norm(rows.to(self.dtype) + F.embedding(positions, self._places))

    def _embed(self, slots: Tensor) -> Tensor:
        """`[n, 3]` to `[n, 3, hidden]`: the base's embeddings at its first three positions."""
        tables = self._embeddings
        first = self.config.position_start
        x = F.embedding((slots - 1).clamp_min(0), tables.words)
        x = x + tables.positions[first : first + 3]
        if tables.types is not None:
            x = x + tables.types[0]
        return tables.norm(x)

    def _layer(self, layer: Layer, asked: Tensor, seen: Tensor, is_present: Tensor) -> Tensor:
        """One post-norm layer: `[n, asked, hidden]` attending to `[n, 3, hidden]`."""
        context = self._attend(layer, asked, seen, is_present)
        x = layer.attention_norm(layer.attention_output(context) + asked)
        inner = self._activation(layer.ffn_input(x))
        return layer.ffn_norm(layer.ffn_output(inner) + x)

    def _attend(self, layer: Layer, asked: Tensor, seen: Tensor, is_present: Tensor) -> Tensor:
        """Attention over three slots: too small for a matrix product, so sums of products."""
        width = self.hidden_size
        if asked is seen:
            query, key, value = layer.qkv(seen).chunk(3, dim=-1)
        else:
            weight, bias = layer.qkv.weight, layer.qkv.bias
            query = F.linear(asked, weight[:width], bias[:width])
            key, value = F.linear(seen, weight[width:], bias[width:]).chunk(2, dim=-1)
        # [n, asked, 1, heads, size] against [n, 1, 3, heads, size]
        heads = (self.config.num_heads, self.config.head_size)
        query = query.reshape(len(seen), -1, 1, *heads) * self.config.head_size**-0.5
        key = key.reshape(len(seen), 1, 3, *heads)
        value = value.reshape(len(seen), 1, 3, *heads)
        scores = (query * key).sum(-1)
        scores = scores.masked_fill(~is_present[:, None, :, None], float("-inf"))
        weighted: Tensor = scores.softmax(2).unsqueeze(-1) * value
        return weighted.sum(2).flatten(-2)


def slots_of(keys: Tensor) -> Tensor:
    """int64 `[n]` packed keys to `[n, 3]` slots."""
    shifts = torch.tensor([2 * _SLOT_BITS, _SLOT_BITS, 0], device=keys.device)
    return (keys[:, None] >> shifts) & _SLOT_MASK


def pack(slots: Tensor) -> Tensor:
    """int64 `[n, 3]` slots to `[n]` packed keys."""
    return slots[:, 0] << 2 * _SLOT_BITS | slots[:, 1] << _SLOT_BITS | slots[:, 2]
