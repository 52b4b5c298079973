"""What an admitted version is made of, in words common to PEFT and AdapterHub.

Names tensors and says what they do at which place of the base; holds no weights and computes
nothing. The gateway reads task and labels from it, the executor packs its tensors by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from services.common.adapter_format.container import TensorFile


class Task(StrEnum):
    """What a model answers."""

    SEQUENCE_CLASSIFICATION = "sequence_classification"
    MULTI_LABEL_CLASSIFICATION = "multi_label_classification"
    REGRESSION = "regression"
    TOKEN_CLASSIFICATION = "token_classification"  # noqa: S105 (no password)
    EMBEDDING = "embedding"


class AdapterType(StrEnum):
    """Kind of task parameters inside the layers."""

    LORA = "LORA"
    IA3 = "IA3"
    BOTTLENECK = "BOTTLENECK"
    NONE = "NONE"


class Site(StrEnum):
    """A tensor that linear maps of a layer read; the values are those of the encoder's sites."""

    ATTENTION_INPUT = "attention_input"
    ATTENTION_OUTPUT = "attention_output"
    FFN_INPUT = "ffn_input"
    FFN_OUTPUT = "ffn_output"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """One linear map: the `part`-th (query, key, value) of those that read a site of a layer."""

    layer: int
    site: Site
    part: int = 0


@dataclass(frozen=True, slots=True)
class Lora:
    """`y += scale * (x a^T) b^T`: `a` [rank, in], `b` [out, rank]. Hu et al. 2021, section 4.1."""

    place: Place | None  # None: the base's pooler
    rank: int
    scale: float
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Scaling:
    """`y *= vector`, or `x *= vector` before the map. IA3: Liu et al. 2022, section 3.3."""

    place: Place | None  # None: the base's pooler
    vector: str
    of_input: bool


class BiasKind(StrEnum):
    """Which of the base's biases a version replaces."""

    LINEAR = "linear"
    NORM = "norm"  # of the LayerNorm that closes a half layer
    EMBEDDING_NORM = "embedding_norm"
    POOLER = "pooler"


@dataclass(frozen=True, slots=True)
class Bias:
    """`tensor` takes the place of the base's `base_name`."""

    kind: BiasKind
    place: Place | None
    tensor: str
    base_name: str


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """A bottleneck adapter after one half of a layer, as AdapterHub defines it.

    With y the half's output, r its residual, N the base's LayerNorm (Pfeiffer et al. 2020 and
    `adapters`' Adapter.pre_forward, forward and post_forward):
    `h = N(y + r)` if `original_ln_before` else `y`; the residual is `y`, or `h`, or `y + r` for
    `residual` "before_norm", "after_norm", "post_add"; `o = up(act(down(LN(h)))) * scaling`; the
    residual is added before or after the adapter's own last norm; `N(o + r)` if
    `original_ln_after`. Down is [size, hidden], up is [hidden, size].
    """

    layer: int
    site: Site
    size: int
    activation: str
    original_ln_before: bool
    original_ln_after: bool
    residual: str
    inner_residual_first: bool
    down: str
    down_bias: str
    up: str
    up_bias: str
    scaling: float | str  # a number, or the tensor of one or `hidden` learned numbers
    norm_before: tuple[str, str] | None
    norm_after: tuple[str, str] | None


class Reads(StrEnum):
    """What a head is given of the last layer's output."""

    POOLED = "pooled"  # the base's pooler on the first token
    FIRST = "first"
    TOKENS = "tokens"
    MEAN = "mean"


@dataclass(frozen=True, slots=True)
class Dense:
    """`activation(weight x + bias)`. A weight of None is the base's own pooler, changed."""

    weight: str | None
    bias: str | None
    activation: str


@dataclass(frozen=True, slots=True)
class Head:
    """The task layer: what it reads, then its dense layers (none: an embedding)."""

    reads: Reads
    layers: tuple[Dense, ...]
    num_outputs: int
    normalize: bool = False


@dataclass(frozen=True, slots=True)
class AdmittedVersion:
    """A version whose every tensor and option is understood.

    Attributes:
        tensors: The container, for packing; names in the spec refer to it.
    """

    format: str
    task: Task
    labels: tuple[str, ...]
    pooling: str
    normalize: bool
    adapter_type: AdapterType
    head: Head
    loras: tuple[Lora, ...]
    scalings: tuple[Scaling, ...]
    biases: tuple[Bias, ...]
    bottlenecks: tuple[Bottleneck, ...]
    tensors: TensorFile

    @property
    def metadata(self) -> Mapping[str, object]:
        """What a catalogue shows."""
        return {
            "task": str(self.task),
            "labels": list(self.labels),
            "adapter_type": str(self.adapter_type),
        }
