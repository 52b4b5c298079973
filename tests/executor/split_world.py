"""A tiny base and the same base split, with a random local encoder and tables at will, all real."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from hmi.admin.v1 import resources_pb2
from hmi.pack import pack
from services.common import ngrams
from services.common.bases import base_digest
from services.common.knowledge import BlobCache, Blobs
from services.common.local_encoder_format import FILE_NAME, Form
from services.common.ngram_counts import NgramCounts, answering_keys
from services.executor.blobs import BlobFiles
from services.executor.config import ExecutorSettings
from services.executor.construct.local_file import load_local, save_local
from services.executor.construct.student import start
from services.executor.device import dtype_name
from services.executor.engine.batching import Batcher, Limits, Plan
from services.executor.engine.engine import Engine, Observe
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import Event, Item, ModelKey
from services.executor.loading import Loader
from services.executor.miss_policy import MissPolicy
from services.executor.models.encoder import Encoder, load_base
from services.executor.models.local_encoder import LocalEncoder
from services.executor.plot.manifest import Manifest, NodeRef
from services.executor.plot.segment import SegmentKind, write_segments
from tests import tiny
from tests.executor.scripted_store import ScriptedStore, scripted_store

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

SPLIT = 1
VOCAB = len(tiny.WORDS) + 4
CPU = torch.device("cpu")
IntArray = NDArray[np.int64]


@dataclass
class World:
    """Blobs, the two bases, and an engine that serves them."""

    directory: Path
    store: ScriptedStore
    stub: KnowledgeServiceAsyncStub
    files: BlobFiles
    loader: Loader
    protos: dict[str, resources_pb2.Base] = field(default_factory=dict)
    bases: dict[str, LoadedBase] = field(default_factory=dict)
    observe: Observe = lambda _part: None
    oracle_base: Encoder | None = None
    num_items: int = 0

    async def load(self, name: str) -> LoadedBase:
        """Serve `minilm` or `hminilm`."""
        proto = self.protos[name]
        loaded = await asyncio.to_thread(self.loader.load, self.directory / name, proto)
        self.bases[proto.digest] = loaded
        return loaded

    def local(self, name: str = FILE_NAME) -> LocalEncoder:
        """A local encoder of its own copy of the base, for oracles."""
        self.oracle_base = self.oracle_base or load_base(
            self.directory / "minilm", dtype=torch.float32, device="cpu"
        )
        return load_local(self.directory / "hminilm" / name, self.oracle_base)

    def adapter(self, seed: int, layers: Sequence[int] = (1,), *, is_null: bool = False) -> str:
        """A LoRA classifier on these layers, perhaps one that changes nothing; its digest."""
        name = f"lora-{seed}-{len(layers)}"
        return self.store.put(lora(self.directory / name, seed, layers, is_null=is_null))

    def segments(self, keys: IntArray, encoder_name: str = FILE_NAME) -> NodeRef:
        """A root's or node's rows, in segments by order."""
        data = (self.directory / "hminilm" / encoder_name).read_bytes()
        encoder, sha256 = self.local(encoder_name), self.store.put(data)
        refs = []
        for order in (1, 2, 3):
            some = np.unique(keys[ngrams.order_of(keys) == order])
            kind = SegmentKind(self.protos["hminilm"].digest, sha256, encoder.form, order)
            for written in write_segments(
                self.directory,
                some,
                kind,
                lambda asked: encoder.rows(torch.from_numpy(asked)).numpy(),
                row_shape=(encoder.num_slots, encoder.hidden_size),
                dtype=dtype_name(encoder.dtype),
            ):
                self.store.put(written.path.read_bytes())
                refs.append(written.ref)
        return NodeRef("", 1, sha256, tuple(refs))

    def tables(self, keys: IntArray, policy: MissPolicy = MissPolicy.BACKOFF) -> str:
        """A table version whose root holds these n-grams and every unigram."""
        unigrams = ngrams.pack(np.zeros(VOCAB), np.arange(VOCAB) + 1, np.zeros(VOCAB))
        root = self.segments(np.concatenate([keys, unigrams]))
        return self.put(Manifest(self.protos["hminilm"].digest, policy, (root,)))

    def put(self, manifest: Manifest) -> str:
        """A manifest's blob."""
        return self.store.put(manifest.to_bytes())

    def item(
        self, ids: Sequence[int], digest: str, table_version: str = "", num_first: int = 0
    ) -> Item:
        """One of `hminilm` if it names tables, else of `minilm`."""
        proto = self.protos["hminilm" if table_version else "minilm"]
        self.num_items += 1
        return Item(
            self.num_items,
            ModelKey("acme", f"m-{digest[:6]}", 1, digest, proto.digest),
            np.array(ids, np.int64),
            num_first_segment_tokens=num_first,
            entry_layer=SPLIT if table_version else 0,
            table_version=table_version,
        )

    async def plans(self, items: Sequence[Item]) -> tuple[list[Plan], list[Event]]:
        """The batches of items that all wait until they can run, and who could not."""
        return await asyncio.to_thread(self._plans, items)

    def _plans(self, items: Sequence[Item]) -> tuple[list[Plan], list[Event]]:
        batcher = Batcher(self.bases, Limits(4096, 64))
        events = [event for item in items for event in batcher.add(item)]
        deadline = time.monotonic() + 20
        while batcher._cold:
            assert time.monotonic() < deadline
            time.sleep(0.005)
            events += batcher.promote()
        plans = []
        while (plan := batcher.plan()) is not None:
            plans.append(plan)
        return plans, events

    async def answers(self, *items: Item) -> list[NDArray[np.float32]]:
        """What the items get, run together."""
        plans, events = await self.plans(items)
        assert not events
        events = await asyncio.to_thread(self._step, plans)
        by_id = {event.item.id: event for event in events}
        for event in events:
            assert event.error is None
        outputs = [by_id[item.id].output for item in items]
        return [output for output in outputs if output is not None]

    def _step(self, plans: Sequence[Plan]) -> list[Event]:
        engine = Engine(self.bases, self.observe)
        return [event for plan in plans for event in engine.step(plan)]


def lora(
    directory: Path, seed: int, layers: Sequence[int] = (1,), *, is_null: bool = False
) -> bytes:
    """The blob of a LoRA classifier on these layers, perhaps one that changes nothing there."""
    tiny.write_lora(directory, seed)
    path = directory / "adapter_model.safetensors"
    config_path = directory / "adapter_config.json"
    kept = {
        name: tensor * (not (is_null and "lora_B" in name))
        for name, tensor in safetensors.torch.load_file(path).items()
        if "layer." not in name or int(name.split("layer.")[1][0]) in layers
    }
    safetensors.torch.save_file(kept, path)
    config = json.loads(config_path.read_text())
    config_path.write_text(json.dumps({**config, "layers_to_transform": list(layers)}))
    return pack(directory)


def keys_of(texts: Sequence[Sequence[int]]) -> IntArray:
    """Every n-gram that could answer for a token of the texts."""
    ids = np.concatenate([np.array(text, np.int64) for text in texts])
    fullest = ngrams.keys_of(ids, [len(text) for text in texts])
    return np.unique(answering_keys(fullest))


def random_texts(num: int, seed: int = 0, max_tokens: int = 20) -> list[list[int]]:
    """Token ids between [CLS] and [SEP]."""
    chooser = np.random.default_rng(seed)
    return [
        [2, *chooser.integers(4, VOCAB, chooser.integers(1, max_tokens)).tolist(), 3]
        for _ in range(num)
    ]


def _base(directory: Path, name: str) -> resources_pb2.Base:
    base = resources_pb2.Base(
        name=name, architecture="bert", hidden_size=tiny.HIDDEN, num_layers=tiny.LAYERS
    )
    for path in sorted(directory.iterdir()):
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        base.files.add(name=path.name, sha256=sha256, size_bytes=path.stat().st_size)
        if path.name == "tokenizer.json":
            base.tokenizer_digest = sha256
    base.max_tokens = 64
    base.digest = base_digest(base.files)
    return base


def write_local(path: Path, base: Encoder, form: Form, seed: int, digest: str) -> None:
    """A random local encoder; those of one base share how looked-up rows are merged."""
    tensors = start(base, SPLIT)
    merging = torch.Generator().manual_seed(7)
    own = torch.Generator().manual_seed(seed)
    for name in ("positions", "types"):
        tensors[name] = torch.randn(tensors[name].shape, generator=merging)
    for name in ("gate.weight", "gate.bias", "layers.0.ffn_output.bias"):
        tensors[name] = torch.randn(tensors[name].shape, generator=own)
    save_local(path, tensors, split=SPLIT, form=form, unsplit_digest=digest)


def write_bases(
    directory: Path, form: Form = Form.CENTRE, *, seed: int = 0
) -> tuple[resources_pb2.Base, resources_pb2.Base]:
    """The base and the split base in directories named after them; they share all but two files.
    The same files twice are no two bases to a store: another seed makes others.

    The split base's root begins with the n-grams of eight random texts.
    """
    for name in ("minilm", "hminilm"):
        tiny.write_base(directory / name, seed)
    unsplit = _base(directory / "minilm", "minilm")
    base = load_base(directory / "minilm", dtype=torch.float32, device="cpu")
    own = directory / "hminilm"
    write_local(own / FILE_NAME, base, form, 1, unsplit.digest)
    keys = keys_of(random_texts(8, seed=1))
    counts = NgramCounts(keys, np.ones_like(keys), len(keys), unsplit.tokenizer_digest)
    (own / "root_keys.safetensors").write_bytes(counts.to_bytes())
    split = _base(own, "hminilm")
    split.split.layer = SPLIT
    split.split.form = resources_pb2.FORM_CENTRE if form is Form.CENTRE else resources_pb2.FORM_SUM
    split.split.unsplit_digest = unsplit.digest
    split.split.encoder_sha256 = next(f.sha256 for f in split.files if f.name == FILE_NAME)
    return unsplit, split


@asynccontextmanager
async def split_world(directory: Path, form: Form = Form.CENTRE) -> AsyncIterator[World]:
    """A world whose bases are there and not loaded yet."""
    unsplit, split = write_bases(directory, form)
    settings = ExecutorSettings(
        knowledge_address="localhost:1",
        cache_dir=directory / "cache",
        device="cpu",
        dtype="float32",
        device_adapter_bytes=4 << 20,
    )
    async with scripted_store() as (store, stub):
        blob_files = BlobFiles(BlobCache(directory / "cache", Blobs(stub)))
        loader = Loader(settings, blob_files, on_change=lambda: None)
        world = World(directory, store, stub, blob_files, loader)
        world.protos = {"minilm": unsplit, "hminilm": split}
        yield world
        for loaded in world.bases.values():
            await asyncio.to_thread(loaded.close)
