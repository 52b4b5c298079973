"""A local encoder while it is learnt: its parameters, and how far it is off.

Knows one batch; does not know files, schedules or optimizers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from services.common.local_encoder_format import Form
from services.executor.construct.shown import ROUND, Texts
from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import Encoder
from services.executor.models.local_encoder import LocalEncoder, LocalWeights, pack, slots_of
from services.executor.models.segments import Segments
from services.executor.models.weights import Layer

# What decides how rows of any encoder on a path are merged: an adapted encoder leaves it alone.
MERGE = ("positions", "types", "norm.weight", "norm.bias")


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
        filled = F.pad(keys, (0, -len(keys) % ROUND), value=1)
        values = encoder.outputs(slots_of(filled)).index_select(0, inverse)
        rows = encoder.split_values(values, texts.segments)
        hidden = encoder.merge(rows, texts.type_ids, texts.segments)
        return states_above(self.base, hidden, texts.segments, self.split)

    def loss(self, texts: Texts, slots: Tensor) -> Tensor:
        """Mean over the states of the squared error relative to the target's square."""
        targets = teacher_states(self.base, texts, self.split)
        return mean_error(self.states(texts, slots), targets, texts.num_tokens)


@torch.no_grad()
def teacher_states(base: Encoder, texts: Texts, split: int) -> list[Tensor]:
    """The unsplit base's hidden states: the input of layer `split`, then each layer's output."""
    hidden = base.embed(texts.token_ids, texts.type_ids, texts.segments)
    hidden = base.run(hidden, texts.segments, layers=range(split), bypass=NoBypass())
    return states_above(base, hidden, texts.segments, split)


def states_above(base: Encoder, hidden: Tensor, segments: Segments, split: int) -> list[Tensor]:
    """`hidden` and the output of each global layer, all `[tokens, hidden]`."""
    states = [hidden]
    for layer in range(split, base.config.num_layers):
        hidden = base.run(hidden, segments, layers=range(layer, layer + 1), bypass=NoBypass())
        states.append(hidden)
    return states


def mean_error(states: list[Tensor], targets: list[Tensor], num_tokens: int) -> Tensor:
    """Mean of the states' relative errors over their first tokens: what follows is filling."""
    pairs = zip(states, targets, strict=True)
    errors = [relative_error(state[:num_tokens], target[:num_tokens]) for state, target in pairs]
    return torch.stack(errors).mean()


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
