"""A trained directory as one version blob: what `models push` uploads, and what its digest names.

Reads Hugging Face PEFT and AdapterHub directories saved as safetensors; needs no torch. Whether a
base can carry the adapter is the gateway's to judge: here only the directory itself is.

A blob is one safetensors file, its tensors in the order of their names, with `__metadata__ =
{"hmi": JSON}` of sorted keys: `format`, `adapter_config`, `head_config`, `task`, `labels`,
`pooling`, `normalize`. The same directory and options give the same bytes.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import safetensors

from hmi.errors import InvalidArgument

TASKS = (
    "sequence_classification",
    "multi_label_classification",
    "regression",
    "token_classification",
    "embedding",
)
POOLINGS = ("mean", "cls")

_PEFT_WEIGHTS = "adapter_model.safetensors"
_HUB_WEIGHTS = "adapter.safetensors"
_HUB_HEAD = "model_head.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt")

_TASK_OF_PEFT_TYPE = {
    "SEQ_CLS": "sequence_classification",
    "TOKEN_CLS": "token_classification",
    "FEATURE_EXTRACTION": "embedding",
}
_FURTHER_TASKS = {"SEQ_CLS": ("multi_label_classification", "regression")}
"""A sequence's head says by no name of PEFT's whether its labels exclude each other."""

_TASK_OF_HEAD_TYPE = {
    "classification": "sequence_classification",
    "multilabel_classification": "multi_label_classification",
    "tagging": "token_classification",
}
_HEAD_OUTPUT = re.compile(
    r"(?:^|\.)(?:classifier|score)(?:\.modules_to_save(?:\.default)?)?(?:\.out_proj)?\.weight$"
)


class Tensor(TypedDict):
    """A tensor as safetensors' own reader gives it."""

    dtype: str
    shape: list[int]
    data: bytes | bytearray


@dataclass(frozen=True, slots=True)
class PackOptions:
    """What the caller states where the directory does not; None leaves it to the directory.

    Labels, pooling and normalize win over the directory's word. A task does not: the head was
    trained for one, and another one's answers would be nonsense of the right shape.
    """

    task: str | None = None
    labels: Sequence[str] | None = None
    pooling: str | None = None
    normalize: bool | None = None


FROM_DIRECTORY = PackOptions()


@dataclass(frozen=True, slots=True)
class _Source:
    format: str
    tensors: Mapping[str, Tensor]
    adapter_config: Mapping[str, Any] | None
    head_config: Mapping[str, Any] | None


def pack(directory: Path, options: PackOptions = FROM_DIRECTORY) -> bytes:
    """The version blob of a trained directory.

    Raises:
        InvalidArgument: No adapter is there, it is a pickle or damaged, or the task cannot be told;
            `field` names the file or the option.
    """
    if not directory.is_dir():
        raise _invalid("directory", f"{directory} is no directory")
    notes = _json_file(directory / "hmi.json") or {}
    source = _read(directory, notes)
    task = _task(options.task, notes, source)
    pooling = options.pooling or notes.get("pooling") or "mean"
    if pooling not in POOLINGS:
        raise _invalid("pooling", f"{pooling!r} is none of {', '.join(POOLINGS)}")
    normalize = options.normalize if options.normalize is not None else notes.get("normalize")
    description = {
        "format": source.format,
        "adapter_config": source.adapter_config,
        "head_config": source.head_config,
        "task": task,
        "labels": _labels(options.labels, notes, task, source),
        "pooling": pooling,
        "normalize": True if normalize is None else bool(normalize),
    }
    return serialize(source.tensors, {"hmi": canonical_json(description)})


def base_of(directory: Path) -> str | None:
    """The name of the base a directory was trained on, if it says so."""
    notes = _json_file(directory / "hmi.json") or {}
    base = notes.get("base")
    return base if isinstance(base, str) else None


def domain_of(directory: Path) -> str | None:
    """The path of the domain whose tables a directory was trained on, if it says so."""
    notes = _json_file(directory / "hmi.json") or {}
    domain = notes.get("domain")
    return domain if isinstance(domain, str) else None


def trained_base_of(directory: Path) -> str | None:
    """What the adapter itself names as its base (a name or a path); None if it says nothing."""
    config = _json_file(directory / "adapter_config.json") or {}
    base = config.get("base_model_name_or_path") or config.get("model_name")
    return base if isinstance(base, str) and base else None


def canonical_json(value: object) -> str:
    """JSON that is the same for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file with its tensors in the order of their names.

    The library's own writer orders by dtype first, and its order is no promise; digests need one.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    chunks: list[bytes | bytearray] = []
    end = 0
    for name in sorted(tensors):
        tensor = tensors[name]
        begin, end = end, end + len(tensor["data"])
        header[name] = {
            "dtype": tensor["dtype"],
            "shape": list(tensor["shape"]),
            "data_offsets": [begin, end],
        }
        chunks.append(tensor["data"])
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the format asks for tensors aligned to 8 bytes
    return b"".join([struct.pack("<Q", len(text)), text, *chunks])


def _read(directory: Path, notes: Mapping[str, Any]) -> _Source:
    adapter_config = _json_file(directory / "adapter_config.json")
    if (directory / _PEFT_WEIGHTS).is_file():
        if adapter_config is None:
            raise _invalid("adapter_config.json", f"is missing beside {_PEFT_WEIGHTS}")
        return _Source("peft", _tensors(directory / _PEFT_WEIGHTS), adapter_config, None)
    if (directory / _HUB_WEIGHTS).is_file():
        if adapter_config is None:
            raise _invalid("adapter_config.json", f"is missing beside {_HUB_WEIGHTS}")
        return _read_adapterhub(directory, adapter_config)
    pickles = sorted(path.name for pattern in _PICKLES for path in directory.glob(pattern))
    if pickles:
        raise _invalid(
            pickles[0],
            "is a pickle, which can run code when it is loaded; save the adapter as safetensors",
            reason="PICKLE",
        )
    if notes.get("task") == "embedding" and adapter_config is None:
        return _Source("none", {}, None, None)
    raise _invalid("directory", f"{directory} holds neither {_PEFT_WEIGHTS} nor {_HUB_WEIGHTS}")


def _read_adapterhub(directory: Path, adapter_config: Mapping[str, Any]) -> _Source:
    tensors = _tensors(directory / _HUB_WEIGHTS)
    head_config = _json_file(directory / "head_config.json")
    if (directory / _HUB_HEAD).is_file():
        if head_config is None:
            raise _invalid("head_config.json", f"is missing beside {_HUB_HEAD}")
        tensors |= _tensors(directory / _HUB_HEAD)
    elif head_config is not None:
        raise _invalid(_HUB_HEAD, "is missing beside head_config.json")
    return _Source("adapterhub", tensors, adapter_config, head_config)


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        tensors: list[tuple[str, Tensor]]
        tensors = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
        return dict(tensors)
    except safetensors.SafetensorError as error:
        raise _invalid(path.name, f"is no safetensors file: {error}") from error


def _json_file(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise _invalid(path.name, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _invalid(path.name, "must hold a JSON object")
    return value


def _task(stated: str | None, notes: Mapping[str, Any], source: _Source) -> str:
    """The head's task, which nobody may state otherwise than the directory does."""
    noted = notes.get("task")
    if noted is not None and noted not in TASKS:
        raise _invalid("hmi.json", f"task {noted!r} is none of {', '.join(TASKS)}")
    if stated is None:
        return noted or _derive_task(source)
    if stated not in TASKS:
        raise _invalid("task", f"{stated!r} is none of {', '.join(TASKS)}")
    if noted is not None and stated != noted:
        raise _contradicted(stated, f"hmi.json says that it was trained for {noted}")
    trained_for = str((source.adapter_config or {}).get("task_type"))
    usual = _TASK_OF_PEFT_TYPE.get(trained_for) if source.format == "peft" else None
    if usual is not None and stated not in (usual, *_FURTHER_TASKS.get(trained_for, ())):
        raise _contradicted(stated, f"adapter_config.json says task_type {trained_for}")
    return stated


def _contradicted(stated: str, word: str) -> InvalidArgument:
    return _invalid(
        "task",
        f"{stated} is asked for, but {word}: leave the task out, or train for {stated}",
        reason="TASK_CONTRADICTED",
    )


def _derive_task(source: _Source) -> str:
    if source.format == "peft":
        stated = (source.adapter_config or {}).get("task_type")
        task = _TASK_OF_PEFT_TYPE.get(str(stated))
        if task is None:
            raise _invalid(
                "task", f"task_type {stated!r} names none that is served; state the task"
            )
        is_single = task == "sequence_classification" and _num_outputs(source) == 1
        return "regression" if is_single else task  # as transformers takes num_labels == 1
    if source.head_config is None:
        return "embedding"
    head_type = source.head_config.get("config", {}).get("head_type")
    if head_type not in _TASK_OF_HEAD_TYPE:
        raise _invalid("head_config.json", f"head_type {head_type!r} is not served")
    return _TASK_OF_HEAD_TYPE[head_type]


def _num_outputs(source: _Source) -> int | None:
    if source.head_config is not None:
        num_labels = source.head_config.get("config", {}).get("num_labels")
        return int(num_labels) if num_labels is not None else None
    rows = {t["shape"][0] for name, t in source.tensors.items() if _HEAD_OUTPUT.search(name)}
    return rows.pop() if len(rows) == 1 else None


def _labels(
    stated: Sequence[str] | None, notes: Mapping[str, Any], task: str, source: _Source
) -> list[str]:
    if task == "embedding":
        return []
    num_outputs = _num_outputs(source)
    if num_outputs is None:
        raise _invalid("head", "the directory holds no head: add it to modules_to_save")
    labels = notes.get("labels") if stated is None else stated
    if labels is not None:
        if len(labels) != num_outputs:
            where = "hmi.json" if stated is None else "labels"
            raise _invalid(where, f"{len(labels)} labels, but the head has {num_outputs} outputs")
        return [str(label) for label in labels]
    known = ((source.head_config or {}).get("config") or {}).get("label2id")
    if isinstance(known, dict) and len(known) == num_outputs:
        return sorted(known, key=lambda label: int(known[label]))
    return [f"LABEL_{index}" for index in range(num_outputs)]


def _invalid(field: str, message: str, *, reason: str = "INVALID_DIRECTORY") -> InvalidArgument:
    return InvalidArgument(f"{field}: {message}", field=field, reason=reason)
