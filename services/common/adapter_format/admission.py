"""Decides whether a version's blob can be served on a base, and says what is in it.

The only way into gateway and executor for task knowledge; knows no storage and no device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.adapter_format.container import (
    Limits,
    TensorFile,
    open_container,
    parse_object,
)
from services.common.adapter_format.hub_format import read_hub, read_hub_head
from services.common.adapter_format.options import Options
from services.common.adapter_format.peft_format import PeftParts, read_peft
from services.common.adapter_format.peft_head import read_peft_head
from services.common.adapter_format.reader import Reader
from services.common.adapter_format.spec import (
    AdapterType,
    AdmittedVersion,
    BiasKind,
    Bottleneck,
    Head,
    Reads,
    Task,
)
from services.common.adapter_format.split import check_above_split
from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument

METADATA_KEY = "hmi"
_KEYS = frozenset(
    {"format", "adapter_config", "head_config", "task", "labels", "pooling", "normalize"}
)
_FORMATS = ("adapterhub", "none", "peft")
_MAX_LABEL_CHARS = 200


@dataclass(frozen=True, slots=True)
class _Meta:
    format: str
    adapter_config: Mapping[str, Any]
    head_config: Mapping[str, Any] | None
    task: Task
    labels: tuple[str, ...]
    pooling: str
    normalize: bool

    @property
    def num_outputs(self) -> int:
        """Numbers the head gives: one for a regression without labels."""
        return len(self.labels) or (1 if self.task is Task.REGRESSION else 0)


def admit(
    blob: bytes | memoryview,
    base_config: BaseConfig,
    *,
    limits: Limits | None = None,
    split_layer: int = 0,
) -> AdmittedVersion:
    """The version in a blob, every option and tensor of it understood.

    The result refers to `blob`'s memory. Layers below `split_layer` must be left alone (0: a base
    that is not split).

    Raises:
        InvalidArgument: It cannot be served; the field is a path such as
            `adapter_config.use_dora`, `labels` or `tensors[NAME].shape`.
        ResourceExhausted: It is larger than the limits allow.
    """
    limits = limits or Limits()
    tensors = open_container(blob, limits)
    meta = _metadata(tensors, limits)
    reader = Reader(tensors)
    parts, bottlenecks = PeftParts(), list[Bottleneck]()
    if meta.format == "peft":
        parts = read_peft(meta.adapter_config, reader, base_config, limits)
    elif meta.format == "adapterhub":
        bottlenecks = read_hub(meta.adapter_config, reader, base_config, limits)
    head = _head(meta, reader, base_config, parts)
    reader.check_all_taken()
    tensors.check_finite()
    version = AdmittedVersion(
        format=meta.format,
        task=meta.task,
        labels=meta.labels,
        pooling=meta.pooling,
        normalize=meta.normalize,
        adapter_type=_adapter_type(parts, bottlenecks),
        head=head,
        loras=tuple(parts.loras),
        scalings=tuple(parts.scalings),
        biases=tuple(parts.biases),
        bottlenecks=tuple(bottlenecks),
        tensors=tensors,
    )
    check_above_split(version, split_layer, base_config.num_layers)
    return version


def _head(meta: _Meta, reader: Reader, base: BaseConfig, parts: PeftParts) -> Head:
    if meta.task is Task.EMBEDDING:
        if meta.head_config is not None:
            raise InvalidArgument("head_config", "an embedding has no head")
        reads = Reads.MEAN if meta.pooling == "mean" else Reads.FIRST
        return Head(reads, (), base.hidden_size, meta.normalize)
    if meta.format == "none":
        raise InvalidArgument("task", f"{meta.task} needs an adapter and a head")
    if meta.format == "adapterhub":
        return read_hub_head(meta.head_config, reader, base, meta.task, meta.num_outputs)
    if meta.head_config is not None:
        raise InvalidArgument("head_config", "belongs to AdapterHub, not to PEFT")
    return read_peft_head(
        reader, base, meta.task, meta.num_outputs, changes_pooler=parts.change_pooler
    )


def _adapter_type(parts: PeftParts, bottlenecks: list[Bottleneck]) -> AdapterType:
    if bottlenecks:
        return AdapterType.BOTTLENECK
    if parts.scalings:
        return AdapterType.IA3
    if parts.loras or any(bias.kind is not BiasKind.POOLER for bias in parts.biases):
        return AdapterType.LORA
    return AdapterType.NONE


def _metadata(tensors: TensorFile, limits: Limits) -> _Meta:
    if METADATA_KEY not in tensors.metadata:
        raise InvalidArgument("blob.__metadata__.hmi", "is missing: pack it with `hmi models push`")
    values = parse_object("blob.__metadata__.hmi", tensors.metadata[METADATA_KEY])
    options = Options("metadata", values)
    options.check_known(_KEYS, (), {})
    form = values.get("format")
    if form not in _FORMATS:
        raise InvalidArgument("format", f"{form!r} is not one of {', '.join(_FORMATS)}")
    config, head_config = values.get("adapter_config"), values.get("head_config")
    if form == "none":
        if config:
            raise InvalidArgument("adapter_config", "format none has no adapter")
        config = {}
    if not isinstance(config, dict):
        raise InvalidArgument("adapter_config", "must be the object of adapter_config.json")
    if head_config is not None and not isinstance(head_config, dict):
        raise InvalidArgument("head_config", "must be the object of head_config.json, or null")
    task = _task(values.get("task"))
    return _Meta(
        format=form,
        adapter_config=config,
        head_config=head_config,
        task=task,
        labels=_labels(values.get("labels"), task, limits),
        pooling=_pooling(values.get("pooling"), task),
        normalize=_normalize(values.get("normalize")),
    )


def _task(value: object) -> Task:
    try:
        return Task(value)  # type: ignore[arg-type]
    except ValueError as error:
        raise InvalidArgument("task", f"{value!r} is not one of {', '.join(Task)}") from error


def _labels(value: object, task: Task, limits: Limits) -> tuple[str, ...]:
    labels = [] if value is None else value
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise InvalidArgument("labels", "must be a list of strings")
    if len(set(labels)) != len(labels):
        raise InvalidArgument("labels", "must be distinct")
    if any(not 0 < len(label) <= _MAX_LABEL_CHARS for label in labels):
        raise InvalidArgument("labels", f"each has 1 to {_MAX_LABEL_CHARS} characters")
    if len(labels) > limits.max_labels:
        raise InvalidArgument("labels", f"at most {limits.max_labels} are served")
    if sum(len(label.encode("utf-8", "replace")) for label in labels) > limits.max_label_bytes:
        # Every answer repeats them.
        raise InvalidArgument("labels", f"have more than {limits.max_label_bytes} bytes together")
    if task is Task.EMBEDDING and labels:
        raise InvalidArgument("labels", "an embedding has none")
    if task not in (Task.EMBEDDING, Task.REGRESSION) and not labels:
        raise InvalidArgument("labels", f"{task} needs them")
    return tuple(labels)


def _pooling(value: object, task: Task) -> str:
    if task is not Task.EMBEDDING and not value:
        return ""
    if value not in ("mean", "cls"):
        raise InvalidArgument("pooling", f"{value!r} is not one of mean, cls")
    return str(value)


def _normalize(value: object) -> bool:
    if value is not None and not isinstance(value, bool):
        raise InvalidArgument("normalize", "must be true or false")
    return bool(value)
