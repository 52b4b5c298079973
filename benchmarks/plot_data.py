"""Tables and texts for the lookup benchmark: made up, of realistic sizes and frequencies.

Knows the formats of tables; measures nothing.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.common import ngrams
from services.common.ngram_counts import NgramCounter
from services.executor.miss_policy import MissPolicy
from services.executor.plot.index import ABSENT
from services.executor.plot.manifest import Manifest, NodeRef
from services.executor.plot.node import NodeTable
from services.executor.plot.segment import Rows, Segment, SegmentKind, write_segments
from services.executor.plot.table import Found, RowEncoder, Table

VOCAB = 30_522
TEXT_TOKENS = 48
ROOT_TOKENS, LEAF_TOKENS = 6_000_000, 1_000_000
_ENCODER = hashlib.sha256(b"encoder").hexdigest()
_SMALL_ROW = (1, 4)  # finding rows does not touch them
_PHRASES = 200_000


def _texts(chance: np.random.Generator, num_tokens: int) -> NDArray[np.int64]:
    """Token ids `[num_tokens]` by Zipf's law, half of them in phrases of four that come again."""
    num_quads = num_tokens // 4
    loose = np.minimum(chance.zipf(1.25, (num_quads, 4)), VOCAB) - 1
    phrases = np.minimum(np.random.default_rng(7).zipf(1.25, (_PHRASES, 4)), VOCAB) - 1
    chosen = np.minimum(chance.zipf(1.1, num_quads), _PHRASES) - 1
    is_phrase = chance.random(num_quads) < 0.5
    return np.where(is_phrase[:, None], phrases[chosen], loose).reshape(-1).astype(np.int64)


def text_keys(chance: np.random.Generator, num_tokens: int) -> NDArray[np.int64]:
    """Keys of fresh texts, int64 `[num_tokens]`."""
    token_ids = _texts(chance, num_tokens + 4)[:num_tokens]
    lengths = np.full(-(-num_tokens // TEXT_TOKENS), TEXT_TOKENS)
    lengths[-1] -= lengths.sum() - num_tokens
    return ngrams.keys_of(token_ids, lengths)


def deep_table(directory: Path) -> Table:
    """Root, domain and sub-domain: what came twice or more in each one's own texts, less what its
    ancestors hold."""
    known = (np.arange(VOCAB, dtype=np.int64) + 1) << ngrams.SLOT_BITS
    nodes, refs = [], []
    for number, (name, num_tokens) in enumerate(
        (("", ROOT_TOKENS), ("news", LEAF_TOKENS), ("news/sport", LEAF_TOKENS))
    ):
        counter = NgramCounter()
        chance = np.random.default_rng(10 + number)
        for _ in range(0, num_tokens, 1 << 20):
            token_ids = _texts(chance, 1 << 20)
            lengths = np.full(len(token_ids) // TEXT_TOKENS, TEXT_TOKENS)
            counter.add(token_ids[: lengths.sum()], lengths)
        counts = counter.counts("")
        frequent = counts.keys[counts.counts >= 2]
        own = np.setdiff1d(frequent, known, assume_unique=True)
        if not number:
            own = np.union1d(own, known)
        known = np.union1d(known, own)
        node, ref = _node(directory, name, number, own)
        nodes.append(node)
        refs.append(ref)
    manifest = Manifest("0" * 64, MissPolicy.BACKOFF, tuple(refs))
    return Table("table", manifest, tuple(nodes))


def _node(
    directory: Path, name: str, number: int, keys: NDArray[np.int64]
) -> tuple[NodeTable, NodeRef]:
    """A node whose rows nobody reads."""
    segments = _segments(
        directory, keys, lambda some: np.zeros((len(some), *_SMALL_ROW), np.float16), _SMALL_ROW
    )
    ref = NodeRef(name, number, _ENCODER, tuple(segment.ref for segment in segments))
    return NodeTable(_ENCODER, segments, _SMALL_ROW), ref


def small_table(
    directory: Path,
    keys: NDArray[np.int64],
    rows: Rows,
    row_shape: tuple[int, int],
    policy: MissPolicy,
    encoder: RowEncoder,
) -> Table:
    """A root alone that holds these keys."""
    segments = _segments(directory, keys, rows, row_shape)
    ref = NodeRef("", 0, _ENCODER, tuple(segment.ref for segment in segments))
    node = NodeTable(_ENCODER, segments, row_shape)
    return Table("table", Manifest("0" * 64, policy, (ref,)), (node,), encoder)


def _segments(
    directory: Path, keys: NDArray[np.int64], rows: Rows, row_shape: tuple[int, int]
) -> list[Segment]:
    segments = []
    orders = ngrams.order_of(keys)
    for order in range(1, ngrams.MAX_ORDER + 1):
        kind = SegmentKind("0" * 64, _ENCODER, "centre", order)
        some = keys[orders == order]
        for written in write_segments(directory, some, kind, rows, row_shape=row_shape):
            segments.append(Segment.open(written.path, written.ref, kind))
    return segments


def num_probes(table: Table, keys: NDArray[np.int64], found: Found) -> int:
    """How many keys `table.find` looked up in all nodes together, told from what it found."""
    depth = len(table.nodes)
    probes_in_class = depth - found.nodes.astype(np.int64)
    total = np.zeros(len(keys), np.int64)
    pending = np.ones(len(keys), np.bool_)
    for candidate in ngrams.candidates(keys).T:
        held = np.any([node.find(candidate) != ABSENT for node in table.nodes], axis=0)
        total[pending & held] += probes_in_class[pending & held]
        total[pending & ~held] += depth
        pending &= ~held
    return int(total.sum())


def write_values(directory: Path, num_rows: int, row_shape: tuple[int, int]) -> Path:
    """A file of random rows, safe on the disk, so that its pages can be dropped."""
    path = directory / "values"
    chance = np.random.default_rng(0)
    with path.open("wb") as file:
        for first in range(0, num_rows, 100_000):
            shape = (min(100_000, num_rows - first), *row_shape)
            file.write(chance.standard_normal(shape, np.float32).astype(np.float16).tobytes())
        file.flush()
        os.fsync(file.fileno())
    return path


def mapped_values(path: Path, row_shape: tuple[int, int]) -> NDArray[np.float16]:
    """The rows, mapped as `Segment` maps them."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    mapped.madvise(mmap.MADV_RANDOM)
    values: NDArray[Any] = np.frombuffer(mapped, np.float16)
    return values.reshape(-1, *row_shape)


def cold_values(path: Path, row_shape: tuple[int, int]) -> NDArray[np.float16]:
    """As `mapped_values`, with no page of the file in memory. Nobody else may map it."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return mapped_values(path, row_shape)
