"""What an answer must be, recomputed from the table version that it names.

Knows the formats of manifests and segments, as they lie in a store's blobs, and the encoder's
arithmetic. Shares no code with the executor's tables: rows are merged and looked up here once more,
plainly.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks.drift.live import Answered
from services.common import array_blob, ngrams
from services.common.ngrams import IntArray
from services.executor.construct.local_file import load_local
from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import load_base
from services.executor.models.segments import Segments

_ORDERS = (
    lambda keys: keys, ngrams.without_right, ngrams.without_left, ngrams.only_centre,
)  # fmt: skip


@dataclass(frozen=True)
class _Node:
    """Keys ascending, and their rows float16 `[n, slots, hidden]`."""

    keys: IntArray
    rows: NDArray[np.float16]


class Oracle:
    """One model at a time, in float32.

    Args:
        base: The checkpoint's directory.
        encoder: The split base's local_encoder.safetensors.
        blobs: The store's directory of blobs.
    """

    def __init__(self, base: Path, encoder: Path, blobs: Path) -> None:
        torch.set_num_threads(1)  # one text at a time: threads would only wait for each other
        self._encoder = load_base(base, dtype=torch.float32, device="cpu")
        self._local = load_local(encoder, self._encoder)
        self._tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._blobs = blobs
        self._node = lru_cache(maxsize=8)(self._read_node)

    def distance(self, answered: Answered, table_version: str = "") -> float:
        """How far an answer is from the right one, as its largest difference of a value.

        Args:
            table_version: What it is held against; what it names if empty.
        """
        right = self.embedding(answered.text, table_version or answered.table_version)
        return float(np.abs(right - answered.values).max())

    @torch.inference_mode()
    def embedding(self, text: str, table_version: str) -> NDArray[np.float32]:
        """A text's vector `[hidden]`, of length 1."""
        ids = self._tokenizer.encode(text).ids
        segments = Segments([len(ids)], torch.device("cpu"))
        rows = torch.from_numpy(self.rows(ngrams.keys_of(ids, [len(ids)]), table_version))
        hidden = self._local.merge(self._local.split_values(rows, segments), None, segments)
        layers = range(self._local.split, self._encoder.config.num_layers)
        hidden = self._encoder.run(hidden, segments, layers=layers, bypass=NoBypass())
        vector: NDArray[np.float32] = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        return vector

    def rows(self, keys: IntArray, table_version: str) -> NDArray[np.float16]:
        """What answers for each fullest n-gram: for each order in turn, from the leaf to the root.

        Raises:
            LookupError: Nothing does: the root lacks a unigram.
        """
        nodes = self._path(table_version)
        found = np.zeros((len(keys), *nodes[0].rows.shape[1:]), np.float16)
        is_open = np.ones(len(keys), np.bool_)
        for candidate in (shorten(keys) for shorten in _ORDERS):
            for node in reversed(nodes):
                if not len(node.keys):
                    continue
                places = np.searchsorted(node.keys, candidate).clip(max=len(node.keys) - 1)
                hits = is_open & (node.keys[places] == candidate)
                found[hits] = node.rows[places[hits]]
                is_open &= ~hits
        if is_open.any():
            raise LookupError(f"{is_open.sum()} tokens have no row in {table_version}")
        return found

    def _path(self, table_version: str) -> list[_Node]:
        manifest = json.loads(self._blob(table_version))
        return [
            self._node(tuple((s["sha256"], s["is_removal"]) for s in node["segments"]))
            for node in manifest["nodes"]
        ]

    def _read_node(self, segments: tuple[tuple[str, bool], ...]) -> _Node:
        """Segments in order: later rows win, removals take away."""
        shape = (self._local.num_slots, self._local.hidden_size)
        keys, rows = np.empty(0, np.int64), np.empty((0, *shape), np.float16)
        for sha256, is_removal in segments:
            arrays = array_blob.parse(self._blob(sha256), what="segment").arrays
            stays = ~np.isin(keys, arrays["keys"])
            keys, rows = keys[stays], rows[stays]
            if not is_removal:
                keys = np.concatenate([keys, arrays["keys"]])
                rows = np.concatenate([rows, arrays["values"]])
        order = np.argsort(keys)
        return _Node(keys[order], rows[order])

    def _blob(self, sha256: str) -> bytes:
        return (self._blobs / sha256[:2] / sha256).read_bytes()


def chosen(answers: Sequence[Answered], num: int, seed: int = 0) -> list[Answered]:
    """A sample: of each domain the first and last answer of every table version, and as many of the
    others as make `num`; answers of one table version come together."""
    ends: dict[tuple[str, str], list[Answered]] = {}
    for answer in answers:
        of = ends.setdefault((answer.path, answer.table_version), [])
        of[1:] = [answer]
    sample = [answer for of in ends.values() for answer in of]
    rest = np.random.default_rng(seed).permutation(len(answers))[: max(0, num - len(sample))]
    sample += [answers[place] for place in rest]
    return sorted(sample, key=lambda answer: (answer.path, answer.table_version))
