"""Makes tables from blobs: manifest, segments, nodes, encoder, each verified and shared.

Knows formats and digests; does not know budgets or who waits. May run on several threads: what two
of them need is made once.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from services.common.errors import DataLoss, FailedPrecondition
from services.common.ids import domain_label
from services.executor.miss_policy import MissPolicy
from services.executor.plot.manifest import Manifest, NodeRef, SegmentRef
from services.executor.plot.node import NodeTable
from services.executor.plot.segment import Segment, SegmentKind
from services.executor.plot.table import RowEncoder, Table

logger = logging.getLogger(__name__)

_Made = TypeVar("_Made")


class TableBlobs(Protocol):
    """Where blobs come from. Called from several threads; may block."""

    def path(self, sha256: str) -> Path:
        """A file that should hold the blob.

        Raises:
            HmiError: It is gone, or cannot be read now.
        """
        ...

    def discard(self, sha256: str) -> None:
        """The file holds something else: `path` shall not return it again."""
        ...


@dataclass(frozen=True, slots=True)
class TableBase:
    """The split base whose tables are read.

    Attributes:
        digest: Of the split base, in hex.
        form: `centre` or `sum`.
        row_shape: slots, hidden.
        vocab_size: Token ids lie below; under back-off the root answers for each.
        dtype: What this executor computes rows in, such as `bfloat16`.
    """

    digest: str
    form: str
    row_shape: tuple[int, int]
    vocab_size: int
    dtype: str


class TableLoader:
    """Loads tables of one split base.

    Nodes and segments are shared between tables by what they are made of, and go with the last
    table that holds them.

    Args:
        load_encoder: A local encoder by its sha256. Its HmiErrors reach those who wait.
    """

    def __init__(
        self, base: TableBase, blobs: TableBlobs, load_encoder: Callable[[str], RowEncoder]
    ) -> None:
        self._base = base
        self._blobs = blobs
        self._segments: _Shared[Segment] = _Shared()
        self._nodes: _Shared[NodeTable] = _Shared()
        self._encoders: _Shared[RowEncoder] = _Shared()
        self._load_encoder = load_encoder

    def manifest(self, version: str) -> Manifest:
        """The manifest of a table version.

        Raises:
            InvalidArgument: The blob is no manifest.
            FailedPrecondition: It is another base's, or lost: two copies had another digest.
            HmiError: As `TableBlobs.path`.
        """
        manifest = Manifest.from_bytes(self._verified(version, _read_verified))
        if manifest.base_digest != self._base.digest:
            raise FailedPrecondition(
                f"table version {version} is of base {manifest.base_digest}",
                reason="TABLE_OF_ANOTHER_BASE",
            )
        return manifest

    def table(self, version: str, manifest: Manifest) -> Table:
        """The table that a manifest describes. Slow: reads and verifies every new segment.

        Under `compute` rows that were computed in another dtype than this executor's, or in an
        unknown one, are left out: they differ from those it computes, so that answers would depend
        on what the tables hold. Under `backoff` any row counts.

        Raises:
            InvalidArgument: A segment contradicts its format or the manifest.
            FailedPrecondition: A segment is lost, or under back-off the root lacks a unigram.
            HmiError: As `TableBlobs.path`.
        """
        computes = manifest.miss_policy is MissPolicy.COMPUTE
        nodes = tuple(self._node(node, is_own_only=computes) for node in manifest.nodes)
        if computes:
            sha256 = manifest.encoder_sha256
            encoder = self._encoders.get(sha256, lambda: self._load_encoder(sha256))
            return Table(version, manifest, nodes, encoder)
        self._check_unigrams(version, nodes[0])
        return Table(version, manifest, nodes)

    def _node(self, ref: NodeRef, *, is_own_only: bool) -> NodeTable:
        segments = [self._segment(ref, segment) for segment in ref.segments]
        if is_own_only:
            # A row that is left out cannot hide an older one of ours that differs: one encoder in
            # one dtype makes one row of an n-gram.
            segments = [s for s in segments if s.values is None or s.dtype == self._base.dtype]
        # Not by path or number: whose rows are the same is the same node.
        return self._nodes.get(
            (ref.encoder_sha256, tuple(segment.ref for segment in segments)),
            lambda: NodeTable(ref.encoder_sha256, segments, self._base.row_shape),
        )

    def _segment(self, node: NodeRef, ref: SegmentRef) -> Segment:
        kind = SegmentKind(self._base.digest, node.encoder_sha256, self._base.form, ref.order)

        def make() -> Segment:
            return self._verified(ref.sha256, lambda path, _: Segment.open(path, ref, kind))

        try:
            return self._segments.get((ref, kind), make)
        except FailedPrecondition as error:
            raise FailedPrecondition(
                f"segment {ref.sha256} of {domain_label(node.path)} cannot be read "
                f"({error.message}): the knowledge store has it made anew, ask again soon; if it "
                "stays so, have an admin update the domain (hmi domains update), and push the "
                "version again",
                reason="BLOB_DAMAGED",
            ) from error

    def _verified(self, sha256: str, read: Callable[[Path, str], _Made]) -> _Made:
        """What `read` makes of a blob's file; a damaged file is fetched anew, once."""
        try:
            return read(self._blobs.path(sha256), sha256)
        except (DataLoss, FileNotFoundError) as error:
            logger.warning("fetching a damaged blob anew", extra={"sha256": sha256})
            logger.debug("what was damaged", exc_info=error)
            self._blobs.discard(sha256)
        try:
            return read(self._blobs.path(sha256), sha256)
        except (DataLoss, FileNotFoundError) as error:
            raise FailedPrecondition(f"blob {sha256} is damaged", reason="BLOB_DAMAGED") from error

    def _check_unigrams(self, version: str, root: NodeTable) -> None:
        unigrams = (np.arange(self._base.vocab_size, dtype=np.int64) + 1) << 21
        num_missing = int((root.find(unigrams) < 0).sum())
        if num_missing:
            raise FailedPrecondition(
                f"the root of table version {version} lacks {num_missing} unigrams",
                reason="UNIGRAMS_MISSING",
            )


class _Shared(Generic[_Made]):
    """Things by what they are made of, made once and kept as long as somebody holds them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: WeakValueDictionary[Hashable, _Made] = WeakValueDictionary()
        self._making: WeakValueDictionary[Hashable, _Turn] = WeakValueDictionary()

    def get(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """The thing, made by whoever comes first."""
        with self._lock:
            turn = self._making.setdefault(key, _Turn())
        with turn.lock:
            with self._lock:
                made = self._made.get(key)
            if made is None:
                made = make()
                with self._lock:
                    self._made[key] = made
            return made


class _Turn:
    """A lock that goes with the last who waits for it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()


def _read_verified(path: Path, sha256: str) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DataLoss(f"the file of blob {sha256} has another digest")
    return data
