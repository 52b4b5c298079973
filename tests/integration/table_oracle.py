"""What a prediction on a split base must be, worked out from what its provenance names.

Reads blobs by digest; back-off goes n-gram by n-gram through plain dictionaries, and the upper
layers are transformers' own, one text at a time. Knows nothing of executors, caches or batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel

from hmi.client import Base, Provenance
from services.executor.construct.local_file import load_local
from services.executor.models.encoder import load_base

Slots = tuple[int, int, int]
Read = Callable[[str], bytes]

SEGMENT_FORMAT = "hmi.plot_segment/1"
NORM_EPS = 1e-12


@dataclass(frozen=True)
class Node:
    """A domain's rows by n-gram, each of its slots a token id plus one or 0 for none."""

    encoder: str
    rows: dict[Slots, np.ndarray]


@dataclass(frozen=True)
class TableVersion:
    """A manifest with the rows of its path, from the root to the leaf."""

    base_digest: str
    computes: bool
    nodes: list[Node]

    def row(self, ngram: Slots) -> np.ndarray | None:
        """The row that answers for a token's n-gram; None if it is to be computed."""
        left, centre, right = ngram
        if self.computes:
            leaf = self.nodes[-1].encoder
            for node in reversed(self.nodes):
                if node.encoder == leaf and ngram in node.rows:
                    return node.rows[ngram]
            return None
        for candidate in (ngram, (left, centre, 0), (0, centre, right), (0, centre, 0)):
            for node in reversed(self.nodes):
                if candidate in node.rows:
                    return node.rows[candidate]
        raise AssertionError(f"no node has a row for {ngram}: the root lacks a unigram")


@dataclass
class Split:
    """A split base laid out in a directory, for transformers and for its local encoders."""

    directory: Path
    base: Base
    local: Mapping[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        assert self.base.split is not None
        self.layer = self.base.split.layer
        halves = safetensors.torch.load_file(self.directory / "local_encoder.safetensors")
        self.local = {name: tensor.float() for name, tensor in halves.items()}
        self.tokenizer = Tokenizer.from_file(str(self.directory / "tokenizer.json"))

    @cached_property
    def _unsplit(self) -> Any:
        return load_base(self.directory, dtype=torch.float32, device="cpu")

    def computed(self, encoder: Path, ngram: Slots) -> np.ndarray:
        """The row that an encoder makes of an n-gram, fp16 `[slots, hidden]`."""
        left, centre, right = ngram
        key = torch.tensor([left << 42 | centre << 21 | right])
        row: np.ndarray = load_local(encoder, self._unsplit).rows(key)[0].numpy()
        return row

    def model(self, blob: bytes) -> Model:
        """A version's weights, merged into the base's."""
        return Model(self, safetensors.torch.load(blob))


class Model:
    """A LoRA classifier, its product added to the weights of the layers from the split on."""

    def __init__(self, split: Split, tensors: Mapping[str, Tensor]) -> None:
        self._split = split
        self._bert = BertModel.from_pretrained(split.directory, attn_implementation="eager").eval()
        prefix = "base_model.model"
        self._head = (
            tensors[f"{prefix}.classifier.weight"], tensors[f"{prefix}.classifier.bias"],
        )  # fmt: skip
        with torch.no_grad():
            for index, layer in enumerate(self._bert.encoder.layer):
                for target in ("query", "value"):
                    name = f"{prefix}.bert.encoder.layer.{index}.attention.self.{target}"
                    if f"{name}.lora_A.weight" in tensors:
                        down, up = (tensors[f"{name}.lora_{which}.weight"] for which in "AB")
                        # tests.tiny writes lora_alpha = 2 r
                        getattr(layer.attention.self, target).weight += 2 * (up @ down)

    @torch.inference_mode()
    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Probabilities float32 `[labels]` of a text by its rows, fp16 `[tokens, hidden]`."""
        local = self._split.local
        hidden = torch.from_numpy(rows.astype(np.float32))
        hidden = hidden + local["positions"][: len(rows)] + local["types"][0]
        hidden = F.layer_norm(
            hidden, hidden.shape[-1:], local["norm.weight"], local["norm.bias"], NORM_EPS
        )[None]
        for layer in self._bert.encoder.layer[self._split.layer :]:
            hidden = layer(hidden)
        logits = F.linear(self._bert.pooler(hidden), *self._head)
        probabilities: np.ndarray = logits.softmax(-1)[0].numpy()
        return probabilities


class Oracle:
    """Answers by provenance.

    Args:
        read: A blob by its sha256.
        directory: Where bases and encoders are laid out.
        bases: The split bases there are.
    """

    def __init__(self, read: Read, directory: Path, bases: list[Base]) -> None:
        self._read = read
        self._directory = directory
        self._bases = {base.digest: base for base in bases}
        self._splits: dict[str, Split] = {}
        self._models: dict[tuple[str, str], Model] = {}
        self._tables: dict[str, TableVersion] = {}
        self._computed: dict[tuple[str, Slots], np.ndarray] = {}
        self._answers: dict[tuple[str, str, str], np.ndarray] = {}

    def learn(self, provenance: Provenance) -> None:
        """Read what a provenance names, if it is new."""
        if provenance.base_digest not in self._splits:
            self._splits[provenance.base_digest] = self._split(provenance.base_digest)
        split = self._splits[provenance.base_digest]
        if (provenance.base_digest, provenance.digest) not in self._models:
            model = split.model(self._verified(provenance.digest))
            self._models[provenance.base_digest, provenance.digest] = model
        if provenance.table_version not in self._tables:
            table = self._table(provenance.table_version)
            assert table.base_digest == provenance.base_digest
            self._tables[provenance.table_version] = table

    def scores(self, provenance: Provenance, text: str) -> np.ndarray:
        """The probabilities float32 `[labels]` of a text."""
        key = (provenance.digest, provenance.table_version, text)
        if key not in self._answers:
            self.learn(provenance)
            split = self._splits[provenance.base_digest]
            slots = [0, *(token + 1 for token in split.tokenizer.encode(text).ids), 0]
            table = self._tables[provenance.table_version]
            rows = [
                self._row(split, table, ngram)
                for ngram in zip(slots, slots[1:], slots[2:], strict=False)
            ]
            model = self._models[provenance.base_digest, provenance.digest]
            self._answers[key] = model.scores(np.stack(rows))
        return self._answers[key]

    def _row(self, split: Split, table: TableVersion, ngram: Slots) -> np.ndarray:
        row = table.row(ngram)
        if row is None:
            encoder = table.nodes[-1].encoder
            row = self._computed.get((encoder, ngram))
            if row is None:
                row = split.computed(self._file(encoder), ngram)
                self._computed[encoder, ngram] = row
        return row[0]  # of the form `centre`, the only one that these tests serve

    def _verified(self, sha256: str) -> bytes:
        data = self._read(sha256)
        assert hashlib.sha256(data).hexdigest() == sha256
        return data

    def _file(self, sha256: str) -> Path:
        path = self._directory / f"{sha256}.safetensors"
        if not path.exists():
            path.write_bytes(self._verified(sha256))
        return path

    def _split(self, digest: str) -> Split:
        base = self._bases[digest]
        directory = self._directory / digest
        directory.mkdir(parents=True)
        for file in base.files:
            (directory / file.name).write_bytes(self._verified(file.sha256))
        return Split(directory, base)

    def _table(self, version: str) -> TableVersion:
        manifest = json.loads(self._verified(version))
        nodes = []
        for node in manifest["nodes"]:
            rows: dict[Slots, np.ndarray] = {}
            for segment in node["segments"]:
                tensors = safetensors.numpy.load(self._verified(segment["sha256"]))
                for index, key in enumerate(tensors["keys"].tolist()):
                    ngram = (key >> 42, key >> 21 & 0x1FFFFF, key & 0x1FFFFF)
                    if segment["is_removal"]:
                        rows.pop(ngram)
                    else:
                        rows[ngram] = tensors["values"][index]
            nodes.append(Node(node["encoder_sha256"], rows))
        return TableVersion(manifest["base_digest"], manifest["miss_policy"] == "compute", nodes)


def segments_of(manifest: bytes) -> set[str]:
    """sha256 of every segment that a manifest names."""
    nodes = json.loads(manifest)["nodes"]
    return {segment["sha256"] for node in nodes for segment in node["segments"]}


def is_segment(blob: bytes) -> bool:
    """Whether a blob is a segment of a table."""
    length = int.from_bytes(blob[:8], "little")
    try:
        header = json.loads(blob[8 : 8 + length])
    except ValueError:  # no safetensors file
        return False
    described = header.get("__metadata__", {}).get("hmi", "{}")
    return json.loads(described).get("format") == SEGMENT_FORMAT
