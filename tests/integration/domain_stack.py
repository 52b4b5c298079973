"""Domain trees on a cluster whose processes end at points that a test names: tenants, their models
and the load on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import torch
from tokenizers import Tokenizer

from hmi.client import Client, Domain, MissPolicy, Provenance, Version
from hmi.errors import Unavailable
from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common.local_encoder_format import Form
from services.common.ngram_counts import NgramCounter
from services.executor.models.encoder import load_base
from tests.executor.split_world import write_bases, write_local
from tests.integration.cluster import TOKEN, Cluster, Process, running, until
from tests.integration.table_load import Load, blob_reader
from tests.integration.table_oracle import Oracle
from tests.tiny import WORDS, write_lora

BASE = "hminilm"
SHARED = "news"
COMPUTING = "zeta"  # and its encoder is its own
# Each tenant's own, which may change as much as it likes.
DOMAIN_OF = {"acme": "news/acme", "bolt": "news/bolt", "zeta": COMPUTING}
MODELS = {"acme": ("still", "led"), "bolt": ("deep", "deep-led"), "zeta": ("own", "own-led")}
FOLLOWING = {name: DOMAIN_OF[tenant] for tenant, (_, name) in MODELS.items()}
ALPHAS = (0.4, 1.0)  # by turns: in every update some domains get rows and some lose them
STORE = {
    "HMI_LEASE_MS": "1500", "HMI_WORK_LEASE_MS": "1000", "HMI_GC_INTERVAL_S": "0.5",
    "HMI_GC_GRACE_S": "3",
}  # fmt: skip


def texts(seed: int, num: int) -> list[str]:
    """Sentences in which some n-grams are much more frequent than others."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(len(WORDS), 0.5))
    return [" ".join(rng.choice(WORDS, rng.integers(3, 12), p=weights)) for _ in range(num)]


@dataclass
class Stack:
    """The cluster, its tenants' load, and what was acknowledged."""

    cluster: Cluster
    directory: Path
    admin: Client
    tenants: dict[str, Client]
    load: Load
    blob: Callable[[str], bytes]
    stub: KnowledgeServiceStub
    pushed: list[Version] = field(default_factory=list)
    num_updates: int = 0

    def switch(self, point: str) -> Path:
        """The file that ends a process at a point."""
        return self.directory / point

    def processes(self, service: str) -> list[Process]:
        return [self.cluster.store] if service == "knowledge_store" else self.cluster.executors

    def domains(self) -> dict[str, Domain]:
        nodes = self.admin.list_domains(BASE, timeout=30)
        return {node.domain.path: node.domain for node in nodes}

    def settle(self) -> dict[str, Domain]:
        """The domains once no update is being worked on."""
        until(lambda: not any(n.is_updating for n in self.domains().values()), 60, every_s=0.1)
        return self.domains()

    def alphas(self) -> dict[str, float]:
        """The shares as they were last set."""
        return {
            path: ALPHAS[(self.num_updates + number) % 2]
            for number, path in enumerate(DOMAIN_OF.values())
        }

    def update(self) -> None:
        """Turn every share and begin an update, acknowledged or not."""
        self.num_updates += 1
        for path, alpha in self.alphas().items():
            self.admin.set_domain(BASE, path, alpha=alpha, timeout=30)
        try:
            assert self.admin.update_domains(BASE).update_id
        except Unavailable:
            return  # the store died of it; planned or not is seen by what comes

    def push(self, number: int) -> None:
        """A further version of a model, as anybody might push one at this moment."""
        adapter = write_lora(self.directory / f"push-{number}", seed=number, layers=(1,))
        self.pushed.append(
            self.tenants["acme"].push_version(
                "pushed", adapter, base=BASE, domain=SHARED, timeout=30
            )
        )

    def following(self, model: str, domain: Domain) -> Provenance:
        """A model's provenance once it reads its domain's table of now."""
        tenant = next(tenant for tenant, names in MODELS.items() if model in names)
        found: list[Provenance] = []

        def is_so() -> bool:
            found.append(self.tenants[tenant].predict(model, "the cat", timeout=30).provenance)
            return found[-1].table_version == domain.table_version

        until(is_so, every_s=0.1)
        self.load.num_answers[tenant] += len(found)
        return found[-1]

    def write_blob(self, data: bytes) -> str:
        """A blob that nothing names."""
        sha256 = hashlib.sha256(data).hexdigest()
        request = pb.WriteBlobRequest(sha256=sha256, size_bytes=len(data), data=data)
        self.stub.WriteBlob(iter([request]), metadata=(("authorization", f"Bearer {TOKEN}"),))
        return sha256


def _write_split_base(directory: Path) -> None:
    """The split base in `directory/hminilm`; an encoder of the domain `lab` beside it."""
    unsplit, _ = write_bases(directory)
    base = load_base(directory / "minilm", dtype=torch.float32, device="cpu")
    write_local(directory / "lab.safetensors", base, Form.CENTRE, 2, unsplit.digest)


def _counts(tokenizer: Path, corpus: list[str]) -> bytes:
    encodings = Tokenizer.from_file(str(tokenizer)).encode_batch(corpus)
    counter = NgramCounter()
    ids = [encoding.ids for encoding in encodings]
    counter.add(np.concatenate(ids), [len(row) for row in ids])
    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    return counter.counts(digest).to_bytes()


def _grow(stack: Stack, directory: Path) -> None:
    """The tree, and each tenant's two versions: one pins its domain's table, one follows it."""
    until(lambda: bool(stack.domains()[""].table_version))
    tokenizer = directory / "hminilm" / "tokenizer.json"
    stack.admin.create_domain(BASE, SHARED, counts=_counts(tokenizer, texts(9, 60)))
    for seed, (tenant, path) in enumerate(DOMAIN_OF.items()):
        computes = path == COMPUTING
        stack.tenants[tenant].create_domain(
            BASE, path, counts=_counts(tokenizer, texts(seed, 60)), alpha=stack.alphas()[path],
            encoder=directory / "lab.safetensors" if computes else None,
            miss_policy=MissPolicy.COMPUTE if computes else MissPolicy.BACKOFF,
        )  # fmt: skip
    stack.settle()
    for seed, (tenant, names) in enumerate(MODELS.items()):
        for name in names:
            adapter = write_lora(directory / f"lora-{seed}", seed=seed, layers=(1,))
            stack.tenants[tenant].push_version(
                name, adapter, base=BASE, domain=DOMAIN_OF[tenant], follow=name in FOLLOWING
            )


@contextmanager
def grown(
    directory: Path, store_points: Iterable[str], executor_points: Iterable[str]
) -> Iterator[Stack]:
    """A store, a gateway, two executors, three tenants who ask until the block is left."""
    _write_split_base(directory)

    def plan(points: Iterable[str]) -> str:
        return ",".join(f"{point}=once:{directory / point}" for point in points)

    with ExitStack() as exits:
        cluster = exits.enter_context(
            running(
                directory, num_gateways=1, num_executors=2,
                store_env=STORE | {"HMI_STORE_FAILPOINTS": plan(store_points)},
                executor_env={"HMI_FAILPOINTS": plan(executor_points)},
            )
        )  # fmt: skip
        admin = exits.enter_context(cluster.client(0))
        base = admin.add_base(BASE, directory / "hminilm")
        tenants = {
            name: exits.enter_context(cluster.client(0, cluster.tenant(name))) for name in MODELS
        }
        channel = exits.enter_context(grpc.insecure_channel(cluster.store.address))
        stub = KnowledgeServiceStub(channel)
        read = blob_reader(stub, TOKEN)
        oracle = Oracle(read, directory / "oracle", [base])
        corpus = [text for seed in range(3) for text in texts(seed, 8)]
        load = Load(oracle, corpus, dict(MODELS), tenants)
        stack = Stack(cluster, directory, admin, tenants, load, read, stub)
        _grow(stack, directory)
        exits.enter_context(load)
        yield stack
