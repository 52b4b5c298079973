"""What a base is, as its config.json says: sizes, positions, activation.

Reads the Hugging Face configurations of the encoders we serve and refuses every other one by name.
Knows no weights and no torch, so that the gateway can bound a request by it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from services.common.errors import FailedPrecondition, InvalidArgument


class Architecture(StrEnum):
    """The `model_type` of a checkpoint we can run."""

    BERT = "bert"
    ROBERTA = "roberta"
    XLM_ROBERTA = "xlm-roberta"
    DISTILBERT = "distilbert"


class Activation(StrEnum):
    """The feed-forward layer's non-linearity."""

    GELU = "gelu"  # exact, by the error function
    GELU_TANH = "gelu_tanh"  # Hendrycks and Gimpel's tanh approximation
    RELU = "relu"
    SILU = "silu"


_ACTIVATIONS = {
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "relu": Activation.RELU,
    "silu": Activation.SILU,
    "swish": Activation.SILU,
}

_BERT_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "activation": "hidden_act",
}
_DISTILBERT_KEYS = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "activation": "activation",
}

# Options that change the arithmetic, with the only value we compute.
_FIXED_OPTIONS: dict[str, object] = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "quantization_config": None,
}

_DISTILBERT_NORM_EPS = 1e-12  # fixed in its modelling code, absent from its configuration


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """An encoder's sizes. Every count is at least 1 unless said otherwise.

    Attributes:
        num_positions: Rows of the position table.
        type_vocab_size: Segment embeddings; 0 where the architecture has none.
    """

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    vocab_size: int
    num_positions: int
    type_vocab_size: int
    pad_token_id: int
    activation: Activation
    norm_eps: float

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def positions_skip_pads(self) -> bool:
        """Whether a padding token inside a text has position `pad_token_id`, uncounted."""
        return self.architecture in (Architecture.ROBERTA, Architecture.XLM_ROBERTA)

    @property
    def position_start(self) -> int:
        """Position of a row's first token."""
        return self.pad_token_id + 1 if self.positions_skip_pads else 0

    @property
    def max_tokens(self) -> int:
        """Longest sequence the position table reaches."""
        return self.num_positions - self.position_start

    @classmethod
    def from_file(cls, path: Path) -> BaseConfig:
        """The configuration in a config.json.

        Raises:
            FailedPrecondition: No such file.
            InvalidArgument: Not a JSON object, or as `from_hf`.
        """
        if not path.is_file():
            raise FailedPrecondition(f"{path.name}: no such file in the base's directory")
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InvalidArgument(path.name, "not JSON") from error
        if not isinstance(config, dict):
            raise InvalidArgument(path.name, "not a JSON object")
        return cls.from_hf(config)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> BaseConfig:
        """The configuration in a Hugging Face config.json's object.

        Raises:
            InvalidArgument: An architecture or option we do not compute, or a size that is missing
                or impossible; the field is `config.json.KEY`.
        """
        architecture = _architecture(config)
        for key, computed in _FIXED_OPTIONS.items():
            if config.get(key, computed) != computed:
                raise _refusal(key, f"{config[key]!r} is not supported, only {computed!r}")
        is_distilbert = architecture is Architecture.DISTILBERT
        keys = _DISTILBERT_KEYS if is_distilbert else _BERT_KEYS
        is_roberta = architecture in (Architecture.ROBERTA, Architecture.XLM_ROBERTA)
        base = cls(
            architecture=architecture,
            hidden_size=_size(config, keys["hidden_size"]),
            intermediate_size=_size(config, keys["intermediate_size"]),
            num_layers=_size(config, keys["num_layers"]),
            num_heads=_size(config, keys["num_heads"]),
            vocab_size=_size(config, "vocab_size"),
            num_positions=_size(config, "max_position_embeddings"),
            type_vocab_size=0 if is_distilbert else _size(config, "type_vocab_size", default=2),
            pad_token_id=_pad_token_id(config, default=1 if is_roberta else 0),
            activation=_activation(config, keys["activation"]),
            norm_eps=_DISTILBERT_NORM_EPS if is_distilbert else _norm_eps(config),
        )
        if base.hidden_size % base.num_heads:
            raise _refusal(
                keys["num_heads"], f"{base.num_heads} does not divide the width {base.hidden_size}"
            )
        if base.pad_token_id >= base.vocab_size:
            raise _refusal("pad_token_id", f"{base.pad_token_id} is outside the vocabulary")
        if base.max_tokens < 1:
            raise _refusal("max_position_embeddings", f"{base.num_positions} leaves no positions")
        return base


def _refusal(key: str, message: str) -> InvalidArgument:
    return InvalidArgument(f"config.json.{key}", message)


def _architecture(config: Mapping[str, Any]) -> Architecture:
    model_type: Any = config.get("model_type")
    try:
        return Architecture(model_type)
    except ValueError as error:
        supported = ", ".join(Architecture)
        raise _refusal(
            "model_type", f"{model_type!r} is not supported; we run {supported}"
        ) from error


def _size(config: Mapping[str, Any], key: str, *, default: int | None = None) -> int:
    value = config.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise _refusal(key, f"must be an integer of at least 1, not {value!r}")
    return value


def _pad_token_id(config: Mapping[str, Any], *, default: int) -> int:
    value = config.get("pad_token_id")
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _refusal("pad_token_id", f"must be an integer of at least 0, not {value!r}")
    return value


def _norm_eps(config: Mapping[str, Any]) -> float:
    value = config.get("layer_norm_eps", 1e-12)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 1:
        raise _refusal("layer_norm_eps", f"must be a number between 0 and 1, not {value!r}")
    return float(value)


def _activation(config: Mapping[str, Any], key: str) -> Activation:
    name = config.get(key, "gelu")
    activation = _ACTIVATIONS.get(name) if isinstance(name, str) else None
    if activation is None:
        raise _refusal(key, f"{name!r} is not supported; we compute {', '.join(_ACTIVATIONS)}")
    return activation
