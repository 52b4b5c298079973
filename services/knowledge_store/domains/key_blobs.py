"""Blobs that the store itself reads and writes: keys, counts, segments of removed keys.

Knows their formats; does not know nodes or updates. Everything here works on threads.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np

from hmi.admin.v1 import resources_pb2 as rpb
from services.common import array_blob
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from services.common.ngram_counts import NgramCounts, check_keys, keys_from_bytes, keys_to_bytes
from services.common.ngrams import SLOT_MASK, order_of, unpack
from services.common.sorted_keys import NONE, BoolArray, IntArray
from services.knowledge_store.blobs import BlobDirectory
from services.knowledge_store.domains.records import SegmentRecord

SEGMENT_FORMAT = "hmi.plot_segment/1"
MAX_SEGMENT_BYTES = 256_000_000
# Of one corpus: 32 M n-grams. Planning takes a few times that in memory.
MAX_COUNTS_BYTES = 512 << 20
FORM_NAMES = {rpb.FORM_CENTRE: "centre", rpb.FORM_SUM: "sum"}
NUM_SLOTS = {rpb.FORM_CENTRE: 1, rpb.FORM_SUM: 3}
_CHUNK_BYTES = 1 << 20


def row_bytes(base: rpb.Base) -> int:
    """Bytes of one row's value: fp16 `[slots, hidden]`."""
    return 2 * NUM_SLOTS[base.split.form] * base.hidden_size


@dataclass(frozen=True)
class SegmentKind:
    """What a segment must say of itself."""

    base_digest: str
    encoder_sha256: str
    form: str
    order: int

    @property
    def metadata(self) -> dict[str, object]:
        return {
            "format": SEGMENT_FORMAT, "base_digest": self.base_digest,
            "encoder_sha256": self.encoder_sha256, "form": self.form, "order": self.order,
        }  # fmt: skip


class KeyBlobs:
    """The store's own way to its blobs.

    Args:
        blobs: Where they are.
    """

    def __init__(self, blobs: BlobDirectory) -> None:
        self._blobs = blobs

    async def write(self, data: bytes) -> str:
        """Make a blob durable; returns its sha256.

        Raises:
            ResourceExhausted: The disk is full, or it is too large.
        """
        sha256 = await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest())
        await self._blobs.write(sha256, len(data), 0, _chunks(data))
        return sha256

    async def write_keys(self, keys: IntArray) -> str:
        """Write keys, ascending, as a blob; no keys are no blob, an empty sha256."""
        return await self.write(keys_to_bytes(keys)) if len(keys) else ""

    async def read_keys(self, sha256: str) -> IntArray:
        """What `write_keys` wrote."""
        if not sha256:
            return NONE
        return await asyncio.to_thread(keys_from_bytes, await self._blobs.read_all(sha256))

    async def read_counts(
        self, field: str, sha256: str, tokenizer_digest: str, vocab_size: int
    ) -> NgramCounts:
        """The counts in a blob.

        Raises:
            FailedPrecondition: There is no such blob.
            InvalidArgument: It is none of counts, of another tokenizer, or names impossible ids.
            ResourceExhausted: It is too large to plan with.
        """
        try:
            data = await self._blobs.mapped(sha256)
        except NotFound:
            raise FailedPrecondition(
                f"there is no blob {sha256}: write it first", reason="BLOB_MISSING"
            ) from None
        if len(data) > MAX_COUNTS_BYTES:
            raise ResourceExhausted(
                f"counts may take {MAX_COUNTS_BYTES} bytes, not {len(data)}: leave out the rarest",
                subject="store/max_counts_bytes",
                reason="COUNTS_TOO_LARGE",
            )
        try:
            counts = await asyncio.to_thread(NgramCounts.from_bytes, data)
        except InvalidArgument as error:
            raise InvalidArgument(field, error.description) from error
        if counts.tokenizer_digest != tokenizer_digest:
            raise InvalidArgument(field, "were counted with another tokenizer")
        if not (await asyncio.to_thread(in_vocabulary, counts.keys, vocab_size)).all():
            raise InvalidArgument(field, f"hold token ids beyond the vocabulary of {vocab_size}")
        return counts

    async def write_removal(self, keys: IntArray, kind: SegmentKind) -> SegmentRecord:
        """Write a segment of removed keys, all of the kind's order."""
        data = array_blob.to_bytes({"keys": keys}, kind.metadata)
        return SegmentRecord(
            sha256=await self.write(data), order=kind.order, num_entries=len(keys),
            size_bytes=len(data), is_removal=True,
        )  # fmt: skip

    async def read_segment_keys(
        self, field: str, segment: SegmentRecord, kind: SegmentKind, value_shape: tuple[int, int]
    ) -> IntArray:
        """The keys of a written segment of rows.

        Raises:
            FailedPrecondition: There is no such blob.
            InvalidArgument: It is no such segment.
        """
        try:
            data = await self._blobs.mapped(segment.sha256)
        except NotFound:
            raise FailedPrecondition(
                f"there is no blob {segment.sha256}: write it first", reason="BLOB_MISSING"
            ) from None
        return await asyncio.to_thread(_segment_keys, field, data, segment, kind, value_shape)


def in_vocabulary(keys: IntArray, vocab_size: int) -> BoolArray:
    """Whether every slot of a key is absent or a token id of the base."""
    return np.asarray((unpack(keys) <= min(vocab_size, SLOT_MASK)).all(axis=-1))


def unigrams(vocab_size: int) -> IntArray:
    """Keys of every token alone, ascending."""
    return np.arange(1, vocab_size + 1, dtype=np.int64) << 21


def _segment_keys(
    field: str,
    data: memoryview,
    segment: SegmentRecord,
    kind: SegmentKind,
    value_shape: tuple[int, int],
) -> IntArray:
    content = array_blob.parse(data, what=field)
    # What the rows were computed in is for executors to judge; older segments do not say it.
    told = {name: value for name, value in content.metadata.items() if name != "dtype"}
    if told != kind.metadata:
        raise InvalidArgument(field, "is of another format, base, encoder, form or order")
    if set(content.arrays) != {"keys", "values"} or len(data) != segment.size_bytes:
        raise InvalidArgument(field, f"must hold keys and values in {segment.size_bytes} bytes")
    keys, values = content.arrays["keys"], content.arrays["values"]
    check_keys(keys, field)
    if len(keys) != segment.num_entries or (order_of(keys) != kind.order).any():
        raise InvalidArgument(field, "does not hold the rows it is said to")
    if values.dtype != np.float16 or values.shape != (len(keys), *value_shape):
        raise InvalidArgument(field, f"values must be fp16 [{len(keys)}, *{list(value_shape)}]")
    return np.array(keys)


async def _chunks(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), _CHUNK_BYTES):
        yield bytes(view[start : start + _CHUNK_BYTES])
