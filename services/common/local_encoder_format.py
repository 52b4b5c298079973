"""The file of a local encoder, `local_encoder.safetensors`: what may be in it. No torch.

Knows names, shapes, dtypes and metadata; computes nothing with the tensors. A split base's root has
such a file, and so has a domain with an encoder of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from services.common.adapter_format import Limits, TensorFile
from services.common.adapter_format.container import open_container, parse_object
from services.common.adapter_format.options import Options
from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument
from services.common.ids import check_sha256

FORMAT = "hmi.local_encoder/1"
FILE_NAME = "local_encoder.safetensors"
METADATA_KEY = "hmi"
_LAYER_LINEARS = ("qkv", "attention_output", "ffn_input", "ffn_output")
_LAYER_NORMS = ("attention_norm", "ffn_norm")
_MERGE = ("positions", "types", "norm.weight", "norm.bias")


class Form(StrEnum):
    """Which of an n-gram's output vectors are kept."""

    CENTRE = "centre"
    SUM = "sum"


@dataclass(frozen=True, slots=True)
class LocalEncoderFile:
    """What an admitted file says of itself.

    Attributes:
        split_layer: Its layers: those of the base from this one on are computed.
        unsplit_digest: Digest of the base it was made for, without the split's own files.
        merge_sha256: Of the parameters that make looked-up rows the split layer's input. Encoders
            of one tree share them, so that their rows mix.
    """

    split_layer: int
    form: Form
    unsplit_digest: str
    merge_sha256: str


def check_local_encoder(
    field: str, blob: bytes | memoryview, base: BaseConfig, unsplit_digest: str, max_bytes: int
) -> LocalEncoderFile:
    """A local encoder of a base, every tensor of it understood and finite.

    Args:
        field: What errors name before the tensor or key.
        unsplit_digest: Of the base it must have been made for.

    Raises:
        InvalidArgument: It is none, or another base's.
        ResourceExhausted: It is larger than `max_bytes`.
    """
    try:
        return _checked(blob, base, unsplit_digest, max_bytes)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"{field}.{error.field}", error.description, reason=error.reason
        ) from error


def _checked(
    blob: bytes | memoryview, base: BaseConfig, unsplit_digest: str, max_bytes: int
) -> LocalEncoderFile:
    tensors = open_container(blob, Limits(max_bytes=max_bytes))
    metadata = Options("metadata", parse_object("metadata", tensors.metadata.get(METADATA_KEY, "")))
    if metadata.get("format") != FORMAT:
        raise InvalidArgument("metadata.format", f"must be {FORMAT}")
    split_layer = metadata.count("split", 0)
    if split_layer >= base.num_layers:
        raise InvalidArgument(
            "metadata.split", f"is {split_layer}, and the base has {base.num_layers} layers"
        )
    form = Form(metadata.text("form", "", list(Form)))
    found = check_sha256("metadata.unsplit_digest", str(metadata.get("unsplit_digest")))
    if found != unsplit_digest:
        raise InvalidArgument(
            "metadata.unsplit_digest",
            f"it was made for base {found[:12]}…, this one is {unsplit_digest[:12]}…",
            reason="ANOTHER_BASE",
        )
    _check_tensors(tensors, _shapes(base, split_layer))
    tensors.check_finite()
    return LocalEncoderFile(split_layer, form, found, _merge_sha256(tensors))


def _shapes(base: BaseConfig, split_layer: int) -> dict[str, tuple[int, ...]]:
    """Every tensor's shape, as the base's sizes and the number of layers make it."""
    hidden, inner = base.hidden_size, base.intermediate_size
    widths = dict(
        zip(_LAYER_LINEARS, ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner),
                             (inner, hidden)), strict=True)
    )  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {
        "gate.weight": (1, hidden),
        "gate.bias": (1,),
        "positions": (base.max_tokens, hidden),
        "norm.weight": (hidden,),
        "norm.bias": (hidden,),
    }
    if base.type_vocab_size:
        shapes["types"] = (base.type_vocab_size, hidden)
    for layer in range(split_layer):
        for part, (inputs, outputs) in widths.items():
            shapes[f"layers.{layer}.{part}.weight"] = (outputs, inputs)
            shapes[f"layers.{layer}.{part}.bias"] = (outputs,)
        for part in _LAYER_NORMS:
            shapes[f"layers.{layer}.{part}.weight"] = (hidden,)
            shapes[f"layers.{layer}.{part}.bias"] = (hidden,)
    return shapes


def _check_tensors(tensors: TensorFile, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name, shape in shapes.items():
        if name not in tensors:
            raise InvalidArgument(f"tensors[{name}]", "is missing", reason="MISSING_TENSOR")
        if tensors.shape(name) != shape:
            raise InvalidArgument(
                f"tensors[{name}].shape",
                f"is {list(tensors.shape(name))}, this base and split need {list(shape)}",
                reason="WRONG_SHAPE",
            )
        if tensors.dtype(name) != "F16":
            raise InvalidArgument(
                f"tensors[{name}].dtype", f"is {tensors.dtype(name)}, must be F16"
            )
    unknown = sorted(set(tensors) - shapes.keys())
    if unknown:
        raise InvalidArgument(f"tensors[{unknown[0]}]", "nothing uses it", reason="UNUSED_TENSOR")


def _merge_sha256(tensors: TensorFile) -> str:
    digest = hashlib.sha256()
    for name in _MERGE:
        if name in tensors:
            digest.update(tensors.raw(name))
    return digest.hexdigest()
