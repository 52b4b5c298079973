"""Split bases, counts and executors to test domains with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hmi.admin.v1 import domain_pb2 as adpb
from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as dpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common import array_blob
from services.common.bases import base_digest
from services.common.ngram_counts import NgramCounts, keys_from_bytes
from services.common.ngrams import pack
from tests.knowledge_store.stores import Store, sha256

VOCAB = 50
HIDDEN = 4
TOKENIZER = b"a tokenizer"
SPLIT_FILES = ("local_encoder.safetensors", "root_keys.safetensors")


def key(*slots: int) -> int:
    """The key of three slots: token id + 1, or 0."""
    return int(pack(*([slot] for slot in slots))[0])


def counts_blob(
    counts: Mapping[int, int], tokenizer: bytes = TOKENIZER, num_tokens: int = 0
) -> bytes:
    keys = np.array(sorted(counts), np.int64)
    values = np.array([counts[int(k)] for k in keys], np.int64)
    return NgramCounts(keys, values, int(values.sum()), sha256(tokenizer)).to_bytes()


def split_base(
    name: str = "hminilm", root: Mapping[int, int] | None = None, **fields: Any
) -> tuple[rpb.Base, dict[str, bytes]]:
    """A split base and its files."""
    config = {
        "model_type": "bert", "hidden_size": HIDDEN, "intermediate_size": 8,
        "num_hidden_layers": 4, "num_attention_heads": 2, "hidden_act": "gelu",
        "vocab_size": VOCAB, "max_position_embeddings": 16, "type_vocab_size": 2,
    }  # fmt: skip
    files = {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": TOKENIZER,
        "model.safetensors": b"weights",
        "local_encoder.safetensors": b"an encoder",
        "root_keys.safetensors": counts_blob(root if root is not None else {key(1, 2, 3): 9}),
    }
    held = [
        rpb.BaseFile(name=file, sha256=sha256(data), size_bytes=len(data))
        for file, data in files.items()
    ]
    unsplit = [file for file in held if file.name not in SPLIT_FILES]
    split = {
        "layer": 2, "form": rpb.FORM_CENTRE, "unsplit_digest": base_digest(unsplit),
        "encoder_sha256": sha256(files["local_encoder.safetensors"]),
    }  # fmt: skip
    base = rpb.Base(
        name=name, digest=base_digest(held), files=held, architecture="bert", hidden_size=HIDDEN,
        num_layers=4, max_tokens=16, tokenizer_digest=sha256(TOKENIZER),
        split=rpb.Split(**split | fields),
    )  # fmt: skip
    return base, files


async def add_split_base(store: Store, name: str = "hminilm", **arguments: Any) -> rpb.Base:
    base, files = split_base(name, **arguments)
    for data in files.values():
        await store.blobs.write(data)
    response = await store.stub.PutBase(pb.PutBaseRequest(base=base))
    return response.base  # type: ignore[no-any-return]


async def create_domain(
    store: Store, path: str, counts: Mapping[int, int] | None = None, **fields: Any
) -> rpb.Domain:
    """Add a node, with a corpus if counts are given."""
    request = dpb.CreateDomainRequest(
        domain=rpb.Domain(**{"base": "hminilm", "path": path} | fields),
        counts_sha256=await store.blobs.write(counts_blob(counts)) if counts is not None else "",
    )
    return (await store.stub.CreateDomain(request)).domain  # type: ignore[no-any-return]


async def update(store: Store, path: str = "", *, dry: bool = False) -> dpb.UpdateDomainsResponse:
    request = dpb.UpdateDomainsRequest(base="hminilm", path=path, is_dry_run=dry)
    return await store.stub.UpdateDomains(request)  # type: ignore[no-any-return]


async def stats(store: Store, base: str = "hminilm") -> dict[str, adpb.DomainStats]:
    response = await store.stub.GetDomainStats(dpb.GetDomainStatsRequest(base=base))
    return {node.domain.path: node for node in response.nodes}


async def lease(
    store: Store, base: rpb.Base, executor: str = "e1", work_id: str = ""
) -> dpb.Work | None:
    request = dpb.LeaseWorkRequest(
        executor_id=executor, base_digests=[base.digest], work_id=work_id
    )
    response = await store.stub.LeaseWork(request)
    return response.work if response.HasField("work") else None


async def rows_of(store: Store, work: dpb.Work) -> list[rpb.Segment]:
    """Write the rows a work asks for; a row's value follows from its key and encoder."""
    keys = keys_from_bytes(await store.blobs.read(work.keys_sha256))
    return [await write_segment(store, work, keys)]


async def write_segment(store: Store, work: dpb.Work, keys: Any, **metadata: Any) -> rpb.Segment:
    data = segment_blob(work, keys, **metadata)
    digest = await store.blobs.write(data)
    return rpb.Segment(sha256=digest, order=work.order, num_entries=len(keys), size_bytes=len(data))


def segment_blob(work: dpb.Work, keys: Any, **metadata: Any) -> bytes:
    values = np.repeat((keys % 100).astype(np.float16)[:, None, None], HIDDEN, axis=2)
    described = {
        "format": "hmi.plot_segment/1", "base_digest": work.base_digest,
        "encoder_sha256": work.encoder_sha256, "form": "centre", "order": work.order,
    }  # fmt: skip
    return array_blob.to_bytes({"keys": keys, "values": values}, described | metadata)


async def complete(store: Store, work: dpb.Work, segments: Sequence[rpb.Segment]) -> bool:
    request = dpb.CompleteWorkRequest(
        work_id=work.work_id, lease_token=work.lease_token, segments=segments,
        expected_version=work.expected_version,
    )  # fmt: skip
    response = await store.stub.CompleteWork(request)
    return bool(response.is_committed)


async def do_all_work(store: Store, base: rpb.Base, executor: str = "e1") -> int:
    """Be an executor until nothing is left to do; returns the pieces done."""
    num_done = 0
    while work := await lease(store, base, executor):
        await complete(store, work, await rows_of(store, work))
        num_done += 1
    return num_done


async def table(store: Store, version: str) -> dict[str, dict[int, str]]:
    """A manifest's rows as an executor would read them: by path, key -> encoder."""
    manifest = json.loads(await store.blobs.read(version))
    held: dict[str, dict[int, str]] = {}
    for node in manifest["nodes"]:
        rows = held.setdefault(node["path"], {})
        for segment in node["segments"]:
            blob = array_blob.parse(await store.blobs.read(segment["sha256"]), what="segment")
            for k in blob.arrays["keys"].tolist():
                if segment["is_removal"]:
                    rows.pop(k)
                else:
                    rows[k] = blob.metadata["encoder_sha256"]
    return held


async def observe(
    store: Store, counts: Sequence[dpb.TenantCounts], sequence: int = 1, epoch: int = 1
) -> None:
    await store.stub.Observe(
        dpb.ObserveRequest(executor_id="e1", epoch=epoch, sequence=sequence, counts=counts)
    )


def traffic(
    tenant: str, path: str, counts: Mapping[int, int], num_tokens: int = 0
) -> dpb.TenantCounts:
    total = num_tokens or sum(counts.values())
    return dpb.TenantCounts(
        base="hminilm", path=path, tenant=tenant, num_tokens=total,
        keys=list(counts), counts=list(counts.values()),
        lookups=adpb.Lookups(num_tokens=total, num_unigram=total),
    )  # fmt: skip
