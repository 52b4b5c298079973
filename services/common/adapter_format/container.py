"""Reads a safetensors container that nobody vouches for.

Knows the container's layout (https://github.com/huggingface/safetensors#format) and its limits;
does not know what the tensors mean. Nothing is executed and nothing is allocated by a size that
the container merely claims.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common.errors import InvalidArgument, ResourceExhausted

FloatArray = NDArray[np.float32]

_PREFIX_BYTES = 8
_MAX_NAME_CHARS = 512
_MAX_DIMENSIONS = 4

# Name in the header to the type of the stored words and, for 16-bit types, the exponent's mask.
_WORDS: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<u2"),
    "BF16": np.dtype("<u2"),
}
_EXPONENTS = {"F16": np.uint16(0x7C00), "BF16": np.uint16(0x7F80)}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a version may at most be. Sizes in bytes."""

    max_bytes: int = 256 << 20
    max_header_bytes: int = 4 << 20
    max_tensors: int = 20_000
    max_rank: int = 256
    max_bottleneck: int = 1024
    max_labels: int = 1024
    max_label_bytes: int = 64 << 10  # of all labels together, in UTF-8
    max_scale: float = 10_000.0  # of an adapter's output; those in use are below 100


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor's place in the container: bytes [begin, end) after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """The tensors of a container by name, and its metadata.

    Args:
        data: Bytes after the header.
        entries: Checked places.
        metadata: The header's `__metadata__`.
    """

    def __init__(
        self, data: memoryview, entries: Mapping[str, Entry], metadata: Mapping[str, str]
    ) -> None:
        self._data = data
        self._entries = entries
        self.metadata = metadata

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor that is there."""
        return self._entries[name].shape

    def dtype(self, name: str) -> str:
        """A tensor's dtype as the header has it: F64, F32, F16 or BF16."""
        return self._entries[name].dtype

    def raw(self, name: str) -> memoryview:
        """A tensor's bytes."""
        entry = self._entries[name]
        return self._data[entry.begin : entry.end]

    def array(self, name: str) -> FloatArray:
        """A tensor that is there, as float32 (a view if it is stored so)."""
        entry = self._entries[name]
        words = self._words(entry)
        if entry.dtype == "BF16":
            values = (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
        elif entry.dtype == "F16":
            values = words.view(np.float16).astype(np.float32)
        else:
            values = words.astype(np.float32, copy=False)
        return values.reshape(entry.shape)

    def check_finite(self) -> None:
        """Refuse NaN and infinity.

        Raises:
            InvalidArgument: `tensors[NAME]` holds one.
        """
        for name, entry in self._entries.items():
            words = self._words(entry)
            mask = _EXPONENTS.get(entry.dtype)
            is_finite = (
                np.abs(words) <= np.finfo(np.float32).max
                if mask is None
                else (words & mask) != mask
            )
            if not is_finite.all():
                raise InvalidArgument(
                    f"tensors[{name}]", "holds NaN or infinity", reason="NON_FINITE_WEIGHTS"
                )

    def _words(self, entry: Entry) -> NDArray[Any]:
        return np.frombuffer(self._data[entry.begin : entry.end], dtype=_WORDS[entry.dtype])


def open_container(blob: bytes | memoryview, limits: Limits) -> TensorFile:
    """The tensors in `blob`; their values are not looked at yet.

    Raises:
        InvalidArgument: `blob` is no safetensors container, or one whose header lies.
        ResourceExhausted: It is larger than the limits allow.
    """
    view = memoryview(blob).cast("B")
    if len(view) > limits.max_bytes:
        raise ResourceExhausted(
            f"blob: {len(view)} bytes, at most {limits.max_bytes} are taken",
            subject="version/size_bytes",
        )
    header_bytes = _header_bytes(view, limits)
    header = _parse_header(bytes(view[_PREFIX_BYTES : _PREFIX_BYTES + header_bytes]))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise InvalidArgument("blob.__metadata__", "must map strings to strings")
    if len(header) > limits.max_tensors:
        raise InvalidArgument(
            "blob", f"{len(header)} tensors, at most {limits.max_tensors} are taken"
        )
    data = view[_PREFIX_BYTES + header_bytes :]
    entries = {name: _entry(name, value) for name, value in header.items()}
    _check_layout(entries, len(data))
    return TensorFile(data, entries, metadata)


def _header_bytes(view: memoryview, limits: Limits) -> int:
    start = bytes(view[:4])
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")):
        raise InvalidArgument(
            "blob",
            "a pickle (or the zip torch.save writes around one) is never read: it can run code; "
            "save as safetensors",
            reason="PICKLE_REFUSED",
        )
    if len(view) < _PREFIX_BYTES:
        raise InvalidArgument("blob", "too short for safetensors", reason="NOT_SAFETENSORS")
    size = int.from_bytes(view[:_PREFIX_BYTES], "little")
    if size > len(view) - _PREFIX_BYTES or bytes(view[_PREFIX_BYTES : _PREFIX_BYTES + 1]) != b"{":
        raise InvalidArgument("blob", "not safetensors", reason="NOT_SAFETENSORS")
    if size > limits.max_header_bytes:
        raise InvalidArgument(
            "blob", f"its header has {size} bytes, at most {limits.max_header_bytes} are taken"
        )
    return size


def parse_object(field: str, text: bytes | str) -> dict[str, Any]:
    """A JSON object without duplicate keys or non-numbers.

    Raises:
        InvalidArgument: `field` is something else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("duplicate key")
        return made

    def no_constant(name: str) -> float:
        raise ValueError(name)

    try:
        parsed = json.loads(text, object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(field, "not a JSON object with distinct keys") from error
    if not isinstance(parsed, dict):
        raise InvalidArgument(field, "not a JSON object")
    return parsed


def _parse_header(text: bytes) -> dict[str, Any]:
    return parse_object("blob.header", text)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(name: str, value: object) -> Entry:
    field = f"tensors[{name[:_MAX_NAME_CHARS]}]"
    if len(name) > _MAX_NAME_CHARS:
        raise InvalidArgument(field, f"a name has at most {_MAX_NAME_CHARS} characters")
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise InvalidArgument(field, "must have dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _WORDS:
        raise InvalidArgument(f"{field}.dtype", f"must be one of {', '.join(_WORDS)}")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(map(_is_count, shape))
    ):
        raise InvalidArgument(f"{field}.shape", f"must be at most {_MAX_DIMENSIONS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise InvalidArgument(f"{field}.data_offsets", "must be two offsets")
    begin, end = offsets
    if end - begin != math.prod(shape) * _WORDS[dtype].itemsize:
        raise InvalidArgument(f"{field}.data_offsets", "do not fit its dtype and shape")
    return Entry(dtype, tuple(shape), begin, end)


def _check_layout(entries: Mapping[str, Entry], size: int) -> None:
    """Tensors must lie one after another and fill the data: no overlap, no hole, no hidden rest."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise InvalidArgument(
                f"tensors[{name}].data_offsets", "overlap another tensor, or leave a hole"
            )
        position = entry.end
    if position != size:
        raise InvalidArgument(
            "blob", f"holds {size} bytes of tensors, its header describes {position}"
        )
