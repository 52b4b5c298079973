"""A local encoder while it is learnt: its parameters, what it is shown, and how far it is off.

Knows one batch; does not know files, schedules or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common import ngrams
from services.common.local_encoder_format import Form
from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import Encoder
from services.executor.models.local_encoder import (
    LEFT,
    RIGHT,
    LocalEncoder,
    LocalWeights,
    pack,
    slots_of,
)
from services.executor.models.segments import Segments
from services.executor.models.weights import Layer

# Of a token's n-gram, in training: a third loses the left neighbour, a third the right, a third
# both. It prepares for tables that lack the trigram (SkipBERT's code; design section 5).
DROP_OUTER = 0.35
# What decides how rows of any encoder on a path are merged: an adapted encoder leaves it alone.
MERGE = ("positions", "types", "norm.weight", "norm.bias")


@dataclass(frozen=True, slots=True)
class Texts:
    """One batch of texts on the device.

    Attributes:
        token_ids: int64 `[tokens]`.
        slots: int64 `[tokens, 3]`: each token's whole n-gram.
    """

    token_ids: Tensor
    slots: Tensor
    segments: Segments

    @classmethod
    def of(cls, rows: list[NDArray[np.int64]], device: torch.device) -> Texts:
        lengths = [len(row) for row in rows]
        ids = np.concatenate(rows)
        slots = ngrams.unpack(ngrams.keys_of(ids, lengths))
        return cls(
            torch.from_numpy(ids).to(device),
            torch.from_numpy(slots).to(device),
            Segments(lengths, device),
        )


def start(base: Encoder, split: int) -> dict[str, Tensor]:
    """Parameters to begin with, float32: the base's own lower layers, a gate half open, no
    positions, and the norm that the split's first layer is used to."""
    config = base.config
    tensors: dict[str, Tensor] = {}
    for index, layer in enumerate(base.weights.layers[:split]):
        tensors |= {f"layers.{index}.{name}": value for name, value in _named(layer).items()}
    norm = base.weights.layers[split - 1].ffn_norm
    tensors["norm.weight"], tensors["norm.bias"] = norm.weight, norm.bias
    tensors["gate.weight"] = torch.zeros(1, config.hidden_size)
    tensors["gate.bias"] = torch.zeros(1)
    tensors["positions"] = torch.zeros(config.max_tokens, config.hidden_size)
    if config.type_vocab_size:
        tensors["types"] = torch.zeros(config.type_vocab_size, config.hidden_size)
    return {name: value.detach().float().clone() for name, value in tensors.items()}


class Student:
    """Parameters that become a local encoder at each step.

    Args:
        base: The teacher. Its layers at and above the split are the student's too, frozen.
        tensors: float32, under the names of `local_encoder.safetensors`. Changed in place.
        is_adapting: The merging stays as it is.
    """

    def __init__(
        self, base: Encoder, tensors: Mapping[str, Tensor], form: Form, *, is_adapting: bool = False
    ) -> None:
        self.base = base
        self.form = form
        self.split = sum(name.endswith(".qkv.weight") for name in tensors)
        self.device = base.device
        self.tensors = {name: tensor.to(base.device) for name, tensor in tensors.items()}
        self.trained = [
            tensor.requires_grad_()
            for name, tensor in self.tensors.items()
            if not (is_adapting and name in MERGE)
        ]

    def encoder(self) -> LocalEncoder:
        """The local encoder in the base's dtype; gradients reach the parameters."""
        cast = {name: tensor.to(self.base.dtype) for name, tensor in self.tensors.items()}
        weights = LocalWeights.from_tensors(cast, self.base.config)
        return LocalEncoder(self.base.config, self.base.weights.embeddings, weights, self.form)

    def states(self, texts: Texts, slots: Tensor) -> list[Tensor]:
        """The hidden states at and above the split, seen through these n-grams."""
        encoder = self.encoder()
        # The same n-gram often comes twice in a batch, the more so without its neighbours.
        keys, inverse = torch.unique(pack(slots), return_inverse=True)
        values = encoder.outputs(slots_of(keys)).index_select(0, inverse)
        hidden = encoder.merge(encoder.split_values(values, texts.segments), None, texts.segments)
        return states_above(self.base, hidden, texts.segments, self.split)

    def loss(self, texts: Texts, slots: Tensor) -> Tensor:
        """Mean over the states of the squared error relative to the target's square."""
        targets = teacher_states(self.base, texts, self.split)
        pairs = zip(self.states(texts, slots), targets, strict=True)
        return torch.stack([relative_error(state, target) for state, target in pairs]).mean()


def drop_outer(slots: Tensor, rng: np.random.Generator, share: float = DROP_OUTER) -> Tensor:
    """The n-grams with outer slots made absent at random."""
    fate = torch.from_numpy(rng.random(len(slots))).to(slots.device) / share
    dropped = slots.clone()
    dropped[:, LEFT][(fate < 2 / 3)] = 0
    dropped[:, RIGHT][(fate >= 1 / 3) & (fate < 1)] = 0
    return dropped


@torch.no_grad()
def teacher_states(base: Encoder, texts: Texts, split: int) -> list[Tensor]:
    """The unsplit base's hidden states: the input of layer `split`, then each layer's output."""
    hidden = base.embed(texts.token_ids, None, texts.segments)
    hidden = base.run(hidden, texts.segments, layers=range(split), bypass=NoBypass())
    return states_above(base, hidden, texts.segments, split)


def states_above(base: Encoder, hidden: Tensor, segments: Segments, split: int) -> list[Tensor]:
    """`hidden` and the output of each global layer, all `[tokens, hidden]`."""
    states = [hidden]
    for layer in range(split, base.config.num_layers):
        hidden = base.run(hidden, segments, layers=range(layer, layer + 1), bypass=NoBypass())
        states.append(hidden)
    return states


def relative_error(state: Tensor, target: Tensor) -> Tensor:
    """Sum of squared differences over the sum of the target's squares, in float32."""
    difference = state.float() - target.float()
    return difference.square().sum() / target.float().square().sum()


def _named(layer: Layer) -> dict[str, Any]:
    parts = {name: getattr(layer, name) for name in Layer.__slots__}
    return {
        f"{name}.{kind}": getattr(part, kind)
        for name, part in parts.items()
        for kind in ("weight", "bias")
    }
