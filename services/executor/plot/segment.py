"""Segments: immutable files of n-grams and their rows, written as a stream and mapped to be read.

Knows one segment's format and how to tell a whole one from a damaged or foreign one; does not know
which node it belongs to or which of its rows still count.
"""

from __future__ import annotations

import hashlib
import mmap
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from services.common import array_blob, ngrams
from services.common.array_blob import ArraySpec
from services.common.errors import DataLoss, InvalidArgument
from services.common.ngram_counts import check_keys
from services.common.ngrams import IntArray
from services.executor.plot.manifest import SegmentRef

SEGMENT_FORMAT = "hmi.plot_segment/1"
MAX_SEGMENT_BYTES = 256_000_000

HalfArray = NDArray[np.float16]
Rows = Callable[[IntArray], HalfArray]

_DTYPE = "dtype"
_CHUNK_ROWS = 4096
_HEADER_ALLOWANCE = 4096  # bytes; a header takes about 500
_HASH_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class SegmentKind:
    """What a segment's rows are rows of.

    Attributes:
        base_digest: Digest of the split base.
        encoder_sha256: The local encoder that made them.
        form: `centre` or `sum`.
        order: Tokens of the n-grams: 1, 2 or 3.
    """

    base_digest: str
    encoder_sha256: str
    form: str
    order: int


@dataclass(frozen=True, slots=True)
class WrittenSegment:
    """A segment that was just written, and its file."""

    ref: SegmentRef
    path: Path


class Segment:
    """A verified segment, mapped. The mapping ends with the last array that refers to it.

    Attributes:
        keys: int64 `[n]`, ascending, distinct.
        values: fp16 `[n, slots, hidden]`; None in a removal.
        dtype: What the rows were computed in before they were rounded to fp16, such as `bfloat16`;
            empty if the file does not say, as older ones do not.
    """

    def __init__(
        self, ref: SegmentRef, keys: IntArray, values: HalfArray | None, dtype: str = ""
    ) -> None:
        self.ref = ref
        self.dtype = dtype
        self.keys = keys
        self.values = values

    @classmethod
    def open(cls, path: Path, ref: SegmentRef, kind: SegmentKind) -> Segment:
        """Map a segment and verify all of it: reads the whole file once.

        Raises:
            DataLoss: The file differs from the digest. A fresh copy may be whole.
            InvalidArgument: The digest is right, but this is no such segment.
            FileNotFoundError: There is no such file.
        """
        with path.open("rb") as file:
            size = path.stat().st_size
            if size != ref.size_bytes or not size:
                raise DataLoss(f"segment {ref.sha256} has {size} bytes, not {ref.size_bytes}")
            mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        if _sha256(memoryview(mapped)) != ref.sha256:
            raise DataLoss(f"the file of segment {ref.sha256} has another digest")
        what = f"segment {ref.sha256}"
        content = array_blob.parse(memoryview(mapped), what=what)
        dtype = content.metadata.get(_DTYPE, "")
        if content.metadata != _metadata(kind, str(dtype)):
            raise InvalidArgument(what, "is of another format, base, encoder, form or order")
        names = {"keys"} if ref.is_removal else {"keys", "values"}
        if set(content.arrays) != names:
            raise InvalidArgument(what, f"must hold exactly {', '.join(sorted(names))}")
        segment = cls(ref, content.arrays["keys"], content.arrays.get("values"), str(dtype))
        segment._check(what)
        # From here on rows are read here and there: reading ahead would only evict others.
        mapped.madvise(mmap.MADV_RANDOM)
        return segment

    def _check(self, what: str) -> None:
        check_keys(self.keys, what)
        if len(self.keys) != self.ref.num_entries:
            raise InvalidArgument(what, f"holds {len(self.keys)} keys, not {self.ref.num_entries}")
        if (ngrams.order_of(self.keys) != self.ref.order).any():
            raise InvalidArgument(what, f"holds n-grams of another order than {self.ref.order}")
        if self.values is None:
            return
        is_rows = self.values.dtype == np.float16 and self.values.ndim == 3
        if not is_rows or len(self.values) != len(self.keys):
            raise InvalidArgument(what, "values must be fp16 [n, slots, hidden]")


def write_segments(
    directory: Path,
    keys: IntArray,
    kind: SegmentKind,
    rows: Rows | None,
    *,
    row_shape: tuple[int, int],
    dtype: str = "",
    max_bytes: int = MAX_SEGMENT_BYTES,
    chunk_rows: int = _CHUNK_ROWS,
) -> Iterator[WrittenSegment]:
    """Write rows as one segment after the other, each within `max_bytes`, in bounded memory.

    Equal rows give equal files, hence equal digests: work done twice is stored once.

    Args:
        directory: Where the files go, named by digest. A file that is not finished is deleted.
        keys: int64 `[n]`, ascending, distinct, all of the kind's order.
        rows: fp16 `[m, slots, hidden]` for `[m]` of the keys; None writes a removal.
        row_shape: slots, hidden.
        dtype: What the rows are computed in; readers under `compute` take their own only.
        chunk_rows: Rows asked for at a time.

    Raises:
        InvalidArgument: The keys are not as described, or a row is NaN or infinite.
        OSError: The disk is full, or another trouble of the file system.
    """
    check_keys(keys, "keys")
    if (ngrams.order_of(keys) != kind.order).any():
        raise InvalidArgument("keys", f"must all have order {kind.order}")
    row_bytes = keys.itemsize + (2 * row_shape[0] * row_shape[1] if rows is not None else 0)
    num_rows = (max_bytes - _HEADER_ALLOWANCE) // row_bytes
    if num_rows < 1:
        raise ValueError(f"{max_bytes} bytes hold no row")
    for first in range(0, len(keys), num_rows):
        part = keys[first : first + num_rows]
        metadata = _metadata(kind, dtype)
        yield _write_segment(directory, part, kind, metadata, rows, row_shape, chunk_rows)


def _write_segment(
    directory: Path,
    keys: IntArray,
    kind: SegmentKind,
    metadata: dict[str, object],
    rows: Rows | None,
    row_shape: tuple[int, int],
    chunk_rows: int,
) -> WrittenSegment:
    specs = {"keys": ArraySpec(np.dtype(np.int64), keys.shape)}
    if rows is not None:
        specs["values"] = ArraySpec(np.dtype(np.float16), (len(keys), *row_shape))
    digest = hashlib.sha256()
    size_bytes = 0
    with tempfile.NamedTemporaryFile(dir=directory, prefix="segment-", delete=False) as file:
        path = Path(file.name)
        try:
            for part in _parts(specs, metadata, keys, rows, chunk_rows):
                digest.update(part)
                size_bytes += len(part)
                file.write(part)
            file.flush()
            final = path.with_name(digest.hexdigest())
            path.replace(final)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    ref = SegmentRef(digest.hexdigest(), kind.order, len(keys), size_bytes, rows is None)
    return WrittenSegment(ref, final)


def _parts(
    specs: dict[str, ArraySpec],
    metadata: dict[str, object],
    keys: IntArray,
    rows: Rows | None,
    chunk_rows: int,
) -> Iterator[bytes]:
    """The file's bytes, piece by piece."""
    yield array_blob.header(specs, metadata)
    yield keys.tobytes()
    if rows is None:
        return
    for first in range(0, len(keys), chunk_rows):
        part = keys[first : first + chunk_rows]
        values = np.ascontiguousarray(rows(part), dtype=np.float16)
        if values.shape != (len(part), *specs["values"].shape[1:]):
            raise ValueError(f"rows of shape {values.shape} for {len(part)} keys")
        if not np.isfinite(values).all():
            raise InvalidArgument("rows", "hold NaN or infinity", reason="NON_FINITE_ROWS")
        yield values.tobytes()


def _metadata(kind: SegmentKind, dtype: str) -> dict[str, object]:
    """As files have it; a dtype that is not known is left out."""
    return {"format": SEGMENT_FORMAT, **asdict(kind), **({_DTYPE: dtype} if dtype else {})}


def _sha256(data: memoryview) -> str:
    digest = hashlib.sha256()
    for begin in range(0, len(data), _HASH_BYTES):
        digest.update(data[begin : begin + _HASH_BYTES])
    return digest.hexdigest()
