"""Numeric arrays in a safetensors container: written as a stream, read in place.

Knows the container (https://github.com/huggingface/safetensors#format) and the few types that
tables and counts use; does not know what the arrays mean. Nothing is allocated by a size that a
container merely claims.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgument

_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PREFIX_BYTES = 8
_MAX_HEADER_BYTES = 1 << 20
_METADATA = "hmi"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Type and shape of an array."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def size_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ArrayBlob:
    """The arrays of a container, views of its bytes, and what it says of them."""

    arrays: Mapping[str, NDArray[Any]]
    metadata: Mapping[str, Any]


def header(specs: Mapping[str, ArraySpec], metadata: Mapping[str, Any]) -> bytes:
    """What precedes the arrays' bytes, which follow in the order of `specs` without a gap.

    Equal arguments give equal bytes, so that equal content has one digest. The length is a multiple
    of 8: arrays of 8-byte numbers come first in `specs` and lie aligned.
    """
    entries: dict[str, object] = {"__metadata__": {_METADATA: canonical_json(metadata).decode()}}
    begin = 0
    for name, spec in specs.items():
        end = begin + spec.size_bytes
        entries[name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _PREFIX_BYTES)
    return len(text).to_bytes(_PREFIX_BYTES, "little") + text


def to_bytes(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any]) -> bytes:
    """A container of arrays that fit in memory."""
    specs = {name: ArraySpec(array.dtype, array.shape) for name, array in arrays.items()}
    parts = [header(specs, metadata)]
    parts += [np.ascontiguousarray(array).tobytes() for array in arrays.values()]
    return b"".join(parts)


def parse(blob: bytes | memoryview, *, what: str) -> ArrayBlob:
    """The arrays in a container, which they keep alive.

    Args:
        blob: The whole container; may be a mapped file.
        what: What it is called in errors.

    Raises:
        InvalidArgument: It is no container, lies about its arrays, or holds other types.
    """
    view = memoryview(blob).cast("B")
    begin, entries = _read_header(view, what)
    metadata = _read_metadata(entries.pop("__metadata__", None), what)
    arrays = {}
    position = 0
    try:
        ordered = sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"])
        for name, entry in ordered:
            spec = ArraySpec(_DTYPES[entry["dtype"]], _shape(entry["shape"]))
            if entry["data_offsets"] != [position, position + spec.size_bytes]:
                raise InvalidArgument(what, f"the array {name[:80]} is not where it should be")
            part = view[begin + position : begin + position + spec.size_bytes]
            if len(part) != spec.size_bytes:
                raise InvalidArgument(what, f"ends within the array {name[:80]}")
            arrays[name] = np.frombuffer(part, dtype=spec.dtype).reshape(spec.shape)
            position += spec.size_bytes
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidArgument(what, "its header is not safetensors, or of other types") from error
    if begin + position != len(view):
        raise InvalidArgument(what, "holds bytes beyond its arrays")
    return ArrayBlob(arrays, metadata)


def canonical_json(value: object) -> bytes:
    """UTF-8 with sorted keys and no spaces, so that equal values have one digest."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _read_header(view: memoryview, what: str) -> tuple[int, dict[str, Any]]:
    """Where the arrays begin, and the header."""
    if len(view) < _PREFIX_BYTES:
        raise InvalidArgument(what, "is no safetensors container")
    size = int.from_bytes(view[:_PREFIX_BYTES], "little")
    if size > _MAX_HEADER_BYTES or _PREFIX_BYTES + size > len(view):
        raise InvalidArgument(what, "is truncated, or no safetensors container")
    try:
        entries = json.loads(bytes(view[_PREFIX_BYTES : _PREFIX_BYTES + size]))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(what, "its header is not JSON") from error
    if not isinstance(entries, dict):
        raise InvalidArgument(what, "its header is not a JSON object")
    return _PREFIX_BYTES + size, entries


def _read_metadata(entry: object, what: str) -> dict[str, Any]:
    text = entry.get(_METADATA) if isinstance(entry, dict) else None
    try:
        metadata = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(what, "its metadata is not JSON") from error
    if not isinstance(metadata, dict):
        raise InvalidArgument(what, f"has no metadata {_METADATA!r}")
    return metadata


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise ValueError("a shape must be a list of sizes")
    return tuple(value)
