"""Small random trees of tables on disk, and what they must answer by brute force."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from services.common import ngrams
from services.executor.miss_policy import MissPolicy
from services.executor.plot import (
    Manifest,
    NodeRef,
    SegmentKind,
    SegmentRef,
    TableBase,
    TableLoader,
    write_segments,
)

BASE = "ba" * 32
ROW_SHAPE = (1, 4)
VOCAB = 6
TABLE_BASE = TableBase(BASE, "centre", ROW_SHAPE, VOCAB, "float32")


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def rows_of(keys: np.ndarray, seed: int, row_shape: tuple[int, int] = ROW_SHAPE) -> np.ndarray:
    """Rows that tell key and seed: fp16 `[n, slots, hidden]`."""
    width = row_shape[0] * row_shape[1]
    mixed = keys.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed + np.uint64(seed * 7919)) >> np.arange(11, 11 + width, dtype=np.uint64)
    return ((mixed % np.uint64(2039)).astype(np.float16) / 64).reshape(len(keys), *row_shape)


class FakeEncoder:
    """Hashes keys to rows; counts what it computed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.asked: list[np.ndarray] = []

    def rows(self, keys: torch.Tensor) -> torch.Tensor:
        self.asked.append(keys.numpy())
        return torch.from_numpy(rows_of(keys.numpy(), self.seed))


@dataclass(frozen=True)
class Part:
    """A segment to be: keys, and the seed of their values; None takes the keys away.

    Attributes:
        dtype: What the values are said to have been computed in.
    """

    keys: frozenset[int]
    seed: int | None
    dtype: str = "float32"


@dataclass
class Blobs:
    """Blobs in a directory, as the executor's cache holds them."""

    directory: Path
    discarded: list[str] = field(default_factory=list)

    def path(self, sha256: str) -> Path:
        return self.directory / sha256

    def discard(self, sha256: str) -> None:
        self.discarded.append(sha256)

    def put(self, data: bytes) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        self.path(sha256).write_bytes(data)
        return sha256


def write_parts(blobs: Blobs, encoder: str, parts: list[Part]) -> tuple[SegmentRef, ...]:
    """A node's segments, one order after the other within a part."""
    refs = []
    for part in parts:
        keys = np.array(sorted(part.keys), np.int64)
        for order in (1, 2, 3):
            some = keys[ngrams.order_of(keys) == order]
            kind = SegmentKind(BASE, encoder, "centre", order)
            seed = part.seed
            rows = None if seed is None else (lambda asked, seed=seed: rows_of(asked, seed))
            dtype = "" if rows is None else part.dtype
            written = write_segments(
                blobs.directory, some, kind, rows, row_shape=ROW_SHAPE, dtype=dtype
            )
            refs += [segment.ref for segment in written]
    return tuple(refs)


def write_version(
    blobs: Blobs, nodes: list[tuple[str, list[Part]]], policy: MissPolicy = MissPolicy.BACKOFF
) -> str:
    """A table version: the encoder and the parts of each node, from the root to the leaf."""
    path = ""
    refs = []
    for number, (encoder, parts) in enumerate(nodes):
        refs.append(NodeRef(path, number, encoder, write_parts(blobs, encoder, parts)))
        path = f"{path}/a".lstrip("/")
    return blobs.put(Manifest(BASE, policy, tuple(refs)).to_bytes())


def unigrams(seed: int = 1) -> Part:
    return Part(frozenset((token + 1) << 21 for token in range(VOCAB)), seed)


def new_loader(blobs: Blobs, encoders: dict[str, FakeEncoder] | None = None) -> TableLoader:
    return TableLoader(TABLE_BASE, blobs, (encoders or {}).__getitem__)


@dataclass(frozen=True)
class Answer:
    """What a token gets: a row and how many tokens its n-gram has (0: computed)."""

    seed: int
    key: int
    order: int

    @property
    def values(self) -> np.ndarray:
        return rows_of(np.array([self.key]), self.seed)[0]


def surviving(parts: list[Part]) -> dict[int, int]:
    """Key to the seed of its row, after all parts."""
    rows: dict[int, int] = {}
    for part in parts:
        for key in part.keys:
            if part.seed is None:
                rows.pop(key, None)
            else:
                rows[key] = part.seed
    return rows


def brute_force(
    nodes: list[tuple[str, list[Part]]], slots: tuple[int, int, int], policy: MissPolicy
) -> Answer | None:
    """The answer for one token, by the design's words; None if it must be computed."""
    left, centre, right = slots
    leaf_encoder = nodes[-1][0]
    if policy is MissPolicy.COMPUTE:
        candidates = [(left, centre, right)]
        nodes = [node for node in nodes if node[0] == leaf_encoder]
    else:
        candidates = [
            (left, centre, right), (left, centre, 0), (0, centre, right), (0, centre, 0),
        ]  # fmt: skip
    for candidate in candidates:
        key = candidate[0] << 42 | candidate[1] << 21 | candidate[2]
        for _, parts in reversed(nodes):
            rows = surviving(parts)
            if key in rows:
                return Answer(rows[key], key, sum(slot > 0 for slot in candidate))
    return None
