"""Reads a base's tensors from its safetensors files, each checked before use.

Knows names, shapes and files; does not know what a tensor is for. Nothing is ever made up: a
tensor that is missing, misshapen or not finite stops the load by its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from services.common.errors import FailedPrecondition, InvalidArgument

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# What TensorFlow called LayerNorm's parameters; bert-base-uncased still does.
_OLD_SUFFIXES = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


class Checkpoint:
    """The tensors of one checkpoint, read as they are taken.

    Args:
        files: Open safetensors handle by tensor name.
        dtype: What `take` converts to.
        device: Where `take` puts tensors.
    """

    def __init__(self, files: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
        self._files = files
        self._dtype = dtype
        self._device = device

    def __contains__(self, name: str) -> bool:
        return self._stored_name(name) in self._files

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name`, contiguous, in the checkpoint's dtype and on its device.

        Raises:
            InvalidArgument: It is missing, has another shape, is not floating point, or holds NaN
                or infinity (also after conversion). The field is the tensor's name.
        """
        stored_name = self._stored_name(name)
        if stored_name not in self._files:
            raise InvalidArgument(name, "the checkpoint has no such tensor")
        stored: Tensor = self._files[stored_name].get_tensor(stored_name)
        if tuple(stored.shape) != shape:
            raise InvalidArgument(name, f"has shape {list(stored.shape)}, not {list(shape)}")
        if not stored.is_floating_point():
            raise InvalidArgument(name, f"has dtype {stored.dtype}, not a floating-point one")
        tensor = stored.to(self._dtype)
        if not torch.isfinite(tensor).all():
            raise InvalidArgument(name, "holds NaN or infinity")
        return tensor.to(self._device).contiguous()

    def _stored_name(self, name: str) -> str:
        if name in self._files:
            return name
        for suffix, old in _OLD_SUFFIXES.items():
            if name.endswith(suffix):
                return name.removesuffix(suffix) + old
        return name


@contextmanager
def open_checkpoint(
    directory: Path, *, dtype: torch.dtype, device: torch.device
) -> Iterator[Checkpoint]:
    """The checkpoint in a Hugging Face directory: one safetensors file, or shards with an index.

    Raises:
        FailedPrecondition: There is no safetensors file, or one that the index names is absent.
        InvalidArgument: A file is not safetensors, or the index is not one; the field is the file.
    """
    shards: Mapping[str, set[str] | None]
    if (directory / SINGLE_FILE).is_file():
        shards = {SINGLE_FILE: None}
    elif (directory / INDEX_FILE).is_file():
        shards = _read_index(directory / INDEX_FILE)
    else:
        raise FailedPrecondition(
            f"{SINGLE_FILE}: the base has no weights (pickled weights are not read)"
        )
    with ExitStack() as stack:
        files: dict[str, Any] = {}
        for shard, names in shards.items():
            handle = stack.enter_context(_open(directory / shard))
            held = set(handle.keys())
            files |= dict.fromkeys(held if names is None else held & names, handle)
        yield Checkpoint(files, dtype, device)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FailedPrecondition(f"{path.name}: no such file in the base's directory")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise InvalidArgument(path.name, "not a complete safetensors file") from error


def _read_index(path: Path) -> dict[str, set[str]]:
    """Tensor names by shard."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidArgument(path.name, "not an index with a weight_map") from error
    if not isinstance(weight_map, dict):
        raise InvalidArgument(path.name, "weight_map is not an object")
    names_by_shard: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        # A name with a folder in it could reach any file of this machine.
        is_plain = isinstance(shard, str) and Path(shard).name == shard
        if not is_plain or not shard.endswith(".safetensors"):
            raise InvalidArgument(path.name, f"{shard!r} is no safetensors file's plain name")
        names_by_shard.setdefault(shard, set()).add(name)
    return names_by_shard
