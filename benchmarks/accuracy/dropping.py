"""Controls that are learnt otherwise than a local encoder is, on the same text by the same loop.

Knows two: no lower layers at all, the upper ones learning to do without; and rows of single tokens
alone. Does not know tasks.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
from torch import Tensor

from services.common.local_encoder_format import Form
from services.executor.construct.shown import Texts
from services.executor.construct.student import (
    Student,
    mean_error,
    start,
    states_above,
    teacher_states,
)
from services.executor.models.encoder import Encoder
from services.executor.models.local_encoder import LEFT, RIGHT
from services.executor.models.weights import EncoderWeights, Layer, Linear, Norm

_FILE = "upper.safetensors"


class UnigramStudent(Student):
    """Sees no neighbour, ever: what it puts out is a table of single tokens."""

    def loss(self, texts: Texts, slots: Tensor) -> Tensor:
        alone = texts.slots.clone()
        alone[:, LEFT], alone[:, RIGHT] = 0, 0
        return super().loss(texts, alone)


class DroppedStudent(Student):
    """The base's embeddings go straight into its upper layers, which are trained.

    Args:
        split: The first of the layers that stay.
    """

    def __init__(self, base: Encoder, split: int) -> None:
        # What a local encoder of one layer would have is not used; layers are put in its place.
        super().__init__(base, start(base, 1), Form.CENTRE)
        self.split = split
        self.tensors = {
            name: tensor.detach().float().clone().requires_grad_()
            for index in range(split, base.config.num_layers)
            for name, tensor in _tensors(base.weights.layers[index], index).items()
        }
        self.trained = list(self.tensors.values())

    def states(self, texts: Texts, slots: Tensor) -> list[Tensor]:
        upper = with_upper(self.base, self.split, self.tensors)
        hidden = upper.embed(texts.token_ids, texts.type_ids, texts.segments)
        return states_above(upper, hidden, texts.segments, self.split)

    def loss(self, texts: Texts, slots: Tensor) -> Tensor:
        """The outputs of the layers that stay; their input cannot be learnt."""
        targets = teacher_states(self.base, texts, self.split)
        return mean_error(self.states(texts, slots)[1:], targets[1:], texts.num_tokens)


def with_upper(base: Encoder, split: int, tensors: dict[str, Tensor]) -> Encoder:
    """The base with other layers from `split` on; gradients reach the tensors."""
    layers = list(base.weights.layers)
    for index in range(split, base.config.num_layers):
        layers[index] = _layer(base, tensors, index)
    weights = EncoderWeights(base.weights.embeddings, tuple(layers), base.weights.pooler)
    return Encoder(base.config, weights)


def save(directory: Path, student: DroppedStudent) -> None:
    """Write the upper layers, float32."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in student.tensors.items()}
    safetensors.torch.save_file(tensors, directory / _FILE)


def load(directory: Path, base: Encoder, split: int) -> Encoder:
    """The base with the upper layers in a directory."""
    return with_upper(base, split, safetensors.torch.load_file(directory / _FILE))


def _tensors(layer: Layer, index: int) -> dict[str, Tensor]:
    return {
        f"layers.{index}.{part}.{kind}": getattr(getattr(layer, part), kind)
        for part in Layer.__slots__
        for kind in ("weight", "bias")
    }


def _layer(base: Encoder, tensors: dict[str, Tensor], index: int) -> Layer:
    def of(part: str, kind: str) -> Tensor:
        return tensors[f"layers.{index}.{part}.{kind}"].to(base.dtype)

    def linear(part: str) -> Linear:
        return Linear(of(part, "weight"), of(part, "bias"))

    def norm(part: str) -> Norm:
        return Norm(of(part, "weight"), of(part, "bias"), base.config.norm_eps)

    return Layer(
        qkv=linear("qkv"),
        attention_output=linear("attention_output"),
        attention_norm=norm("attention_norm"),
        ffn_input=linear("ffn_input"),
        ffn_output=linear("ffn_output"),
        ffn_norm=norm("ffn_norm"),
    )
