"""Split bases of the tests' tiny one, and the tables of their trees, without torch.

Rows are made as an executor would: work is leased, zeros are written as segments, and completed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.numpy import save

from hmi.admin.v1 import model_pb2, resources_pb2
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from hmi.knowledge.v1 import domain_pb2
from services.common import array_blob, ngrams
from services.common.bases import base_digest
from services.common.ngram_counts import NgramCounts, keys_from_bytes
from tests.gateway.blobs import sha256
from tests.gateway.conftest import CONFIG, Stack, tokenizer_json, unique, until

HIDDEN, INNER, POSITIONS = 32, 64, 64
ENCODER, ROOT = "local_encoder.safetensors", "root_keys.safetensors"


def pb_files(files: dict[str, bytes]) -> list[resources_pb2.BaseFile]:
    return [
        resources_pb2.BaseFile(name=name, sha256=sha256(data), size_bytes=len(data))
        for name, data in files.items()
    ]


def unsplit_files(name: str) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": tokenizer_json(),
        "model.safetensors": f"weights of {name}".encode(),
    }


def encoder_tensors(seed: int = 0, layers: int = 1) -> dict[str, np.ndarray]:
    """A local encoder; `positions`, `types` and `norm` are the same for every seed."""
    rng = np.random.default_rng(seed)
    shapes = {"gate.weight": (1, HIDDEN), "gate.bias": (1,)}
    for layer in range(layers):
        linears = {
            "qkv": (3 * HIDDEN, HIDDEN), "attention_output": (HIDDEN, HIDDEN),
            "ffn_input": (INNER, HIDDEN), "ffn_output": (HIDDEN, INNER),
        }  # fmt: skip
        for part, (outputs, inputs) in linears.items():
            shapes[f"layers.{layer}.{part}.weight"] = (outputs, inputs)
            shapes[f"layers.{layer}.{part}.bias"] = (outputs,)
        for part in ("attention_norm", "ffn_norm"):
            shapes[f"layers.{layer}.{part}.weight"] = (HIDDEN,)
            shapes[f"layers.{layer}.{part}.bias"] = (HIDDEN,)
    tensors = {name: rng.normal(size=shape).astype("f2") for name, shape in shapes.items()}
    shared = np.random.default_rng(99)
    for name, shape in {
        "positions": (POSITIONS, HIDDEN), "types": (2, HIDDEN), "norm.weight": (HIDDEN,),
        "norm.bias": (HIDDEN,),
    }.items():  # fmt: skip
        tensors[name] = shared.normal(size=shape).astype("f2")
    return tensors


def encoder_blob(
    unsplit_digest: str, tensors: dict[str, np.ndarray] | None = None, **metadata: Any
) -> bytes:
    described = {
        "format": "hmi.local_encoder/1", "split": 1, "form": "centre",
        "unsplit_digest": unsplit_digest, **metadata,
    }  # fmt: skip
    return save(tensors or encoder_tensors(), {"hmi": json.dumps(described)})


def counts_blob(
    triples: list[tuple[int, int, int]], tokenizer: bytes | None = None, count: int = 5
) -> bytes:
    """Counts of n-grams given as slots: token id plus one, 0 if absent."""
    keys = np.unique(ngrams.pack(*np.array(triples, np.int64).T))
    counts = np.full(len(keys), count, np.int64)
    digest = sha256(tokenizer_json() if tokenizer is None else tokenizer)
    return NgramCounts(keys, counts, count * len(keys), digest).to_bytes()


TRIGRAMS = [(3, 5, 6), (5, 6, 7), (3, 5, 0), (0, 5, 6), (0, 5, 0)]


def split_files(name: str, **changes: Any) -> dict[str, bytes]:
    """Files of a split base; `encoder` and `root` take the place of what is right."""
    files = unsplit_files(name)
    digest = base_digest(pb_files(files))
    files[ENCODER] = changes.get("encoder", encoder_blob(digest))
    files[ROOT] = changes.get("root", counts_blob(TRIGRAMS))
    return {name: data for name, data in files.items() if data is not None}


def add_base(stack: Stack, name: str, files: dict[str, bytes]) -> Any:
    header = model_pb2.AddBaseHeader(name=name, files=pb_files(files))
    parts = [model_pb2.AddBaseRequest(header=header)]
    parts += [model_pb2.AddBaseRequest(chunk=data) for data in files.values()]
    return ModelServiceStub(stack.channel).AddBase(iter(parts), metadata=stack.as_admin)


@dataclass
class SplitBase:
    """A split base whose root has its table."""

    name: str
    pb: resources_pb2.Base

    @property
    def digest(self) -> str:
        return self.pb.digest

    def node(self, stack: Stack, path: str = "") -> resources_pb2.Domain:
        return stack.app.mirror.state.domains[self.name][path]


async def add_split_base(stack: Stack) -> SplitBase:
    name = unique("split")
    base = (await add_base(stack, name, split_files(name))).base
    made = SplitBase(name, base)
    await materialise(stack, made)
    return made


async def materialise(stack: Stack, base: SplitBase) -> int:
    """Do what work there is; the number of rows. Their values are zero: nobody reads them here."""
    num_rows = 0
    while True:
        lease = domain_pb2.LeaseWorkRequest(executor_id="tests", base_digests=[base.digest])
        answer = await stack.knowledge.LeaseWork(lease)
        if not answer.HasField("work"):
            break
        work = answer.work
        keys = keys_from_bytes(await stack.blobs.read(work.keys_sha256))
        num_rows += len(keys)
        segment = await _segment(stack, base, work, keys)
        done = domain_pb2.CompleteWorkRequest(
            work_id=work.work_id, lease_token=work.lease_token,
            expected_version=work.expected_version, segments=[segment],
        )  # fmt: skip
        await stack.knowledge.CompleteWork(done)
    tree = stack.app.mirror.state.domains
    await until(lambda: not any(node.is_updating for node in tree[base.name].values()))
    return num_rows


async def _segment(
    stack: Stack, base: SplitBase, work: domain_pb2.Work, keys: ngrams.IntArray
) -> resources_pb2.Segment:
    values = np.zeros((len(keys), 1, HIDDEN), np.float16)
    metadata = {
        "format": "hmi.plot_segment/1", "base_digest": base.digest, "form": "centre",
        "encoder_sha256": work.encoder_sha256, "order": work.order,
    }  # fmt: skip
    blob = array_blob.to_bytes({"keys": keys, "values": values}, metadata)
    return resources_pb2.Segment(
        sha256=await stack.blobs.write(blob), order=work.order, num_entries=len(keys),
        size_bytes=len(blob),
    )  # fmt: skip
