"""The frozen tensors of an encoder, laid out as the encoder multiplies them.

Knows each architecture's tensor names and fuses query, key and value into one matrix; does not
know how layers are computed. All tensors have the checkpoint's dtype and device.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from services.common.base_config import Architecture, BaseConfig
from services.common.errors import FailedPrecondition
from services.executor.models.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Linear:
    """`weight` [outputs, inputs], `bias` [outputs]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """`[..., inputs]` to `[..., outputs]`."""
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """LayerNorm over the last dimension; `weight` and `bias` [width]."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """`words` [vocabulary, hidden], `positions` [positions, hidden], `types` [types, hidden]."""

    words: Tensor
    positions: Tensor
    types: Tensor | None
    norm: Norm


@dataclass(frozen=True, slots=True)
class Layer:
    """One post-norm transformer layer. `qkv` holds query, key and value, in this order."""

    qkv: Linear
    attention_output: Linear
    attention_norm: Norm
    ffn_input: Linear
    ffn_output: Linear
    ffn_norm: Norm


@dataclass(frozen=True, slots=True)
class EncoderWeights:
    """All of a base. `pooler` is None where the checkpoint has none."""

    embeddings: Embeddings
    layers: tuple[Layer, ...]
    pooler: Linear | None


@dataclass(frozen=True, slots=True)
class _Names:
    """Where an architecture keeps a layer's parts; `layer` is formatted with its index."""

    layer: str
    query: str
    key: str
    value: str
    attention_output: str
    attention_norm: str
    ffn_input: str
    ffn_output: str
    ffn_norm: str


_BERT_NAMES = _Names(
    layer="encoder.layer.{}.",
    query="attention.self.query",
    key="attention.self.key",
    value="attention.self.value",
    attention_output="attention.output.dense",
    attention_norm="attention.output.LayerNorm",
    ffn_input="intermediate.dense",
    ffn_output="output.dense",
    ffn_norm="output.LayerNorm",
)
_DISTILBERT_NAMES = _Names(
    layer="transformer.layer.{}.",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    attention_output="attention.out_lin",
    attention_norm="sa_layer_norm",
    ffn_input="ffn.lin1",
    ffn_output="ffn.lin2",
    ffn_norm="output_layer_norm",
)
# What a checkpoint saved with a head puts before the encoder's tensor names.
_PREFIXES = {
    Architecture.BERT: "bert.",
    Architecture.ROBERTA: "roberta.",
    Architecture.XLM_ROBERTA: "roberta.",
    Architecture.DISTILBERT: "distilbert.",
}
_WORDS = "embeddings.word_embeddings.weight"


def load_weights(checkpoint: Checkpoint, config: BaseConfig) -> EncoderWeights:
    """The encoder's weights, with or without the architecture's name prefix.

    Raises:
        FailedPrecondition: The checkpoint holds no encoder of this architecture.
        InvalidArgument: As `Checkpoint.take`.
    """
    prefixes = ["", _PREFIXES[config.architecture]]
    prefix = next((prefix for prefix in prefixes if prefix + _WORDS in checkpoint), None)
    if prefix is None:
        raise FailedPrecondition(f"{_WORDS}: the checkpoint has no {config.architecture} encoder")
    reader = _Reader(checkpoint, config, prefix)
    return EncoderWeights(
        embeddings=reader.embeddings(),
        layers=tuple(reader.layer(index) for index in range(config.num_layers)),
        pooler=reader.pooler(),
    )


class _Reader:
    """Takes the parts of one encoder from a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, config: BaseConfig, prefix: str) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._prefix = prefix
        is_distilbert = config.architecture is Architecture.DISTILBERT
        self._names = _DISTILBERT_NAMES if is_distilbert else _BERT_NAMES

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._checkpoint.take(self._prefix + name, shape)

    def _linear(self, name: str, outputs: int, inputs: int) -> Linear:
        return Linear(
            self._take(f"{name}.weight", outputs, inputs), self._take(f"{name}.bias", outputs)
        )

    def _norm(self, name: str) -> Norm:
        width = self._config.hidden_size
        return Norm(
            self._take(f"{name}.weight", width),
            self._take(f"{name}.bias", width),
            self._config.norm_eps,
        )

    def embeddings(self) -> Embeddings:
        config = self._config
        types = None
        if config.type_vocab_size:
            types = self._take(
                "embeddings.token_type_embeddings.weight",
                config.type_vocab_size,
                config.hidden_size,
            )
        return Embeddings(
            words=self._take(_WORDS, config.vocab_size, config.hidden_size),
            positions=self._take(
                "embeddings.position_embeddings.weight", config.num_positions, config.hidden_size
            ),
            types=types,
            norm=self._norm("embeddings.LayerNorm"),
        )

    def layer(self, index: int) -> Layer:
        names = self._names
        hidden, intermediate = self._config.hidden_size, self._config.intermediate_size
        at = names.layer.format(index)
        heads = [
            self._linear(at + name, hidden, hidden)
            for name in (names.query, names.key, names.value)
        ]
        return Layer(
            qkv=Linear(
                torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])
            ),
            attention_output=self._linear(at + names.attention_output, hidden, hidden),
            attention_norm=self._norm(at + names.attention_norm),
            ffn_input=self._linear(at + names.ffn_input, intermediate, hidden),
            ffn_output=self._linear(at + names.ffn_output, hidden, intermediate),
            ffn_norm=self._norm(at + names.ffn_norm),
        )

    def pooler(self) -> Linear | None:
        name = "pooler.dense"
        parts = [f"{self._prefix}{name}.{part}" in self._checkpoint for part in ("weight", "bias")]
        if not any(parts):
            return None
        return self._linear(name, self._config.hidden_size, self._config.hidden_size)
