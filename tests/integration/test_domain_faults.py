"""Store and executors die at every named step of an update, while tenants ask: each answer is what
its provenance says, the update ends, nothing that was acknowledged is lost, no segment is left."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from hmi.client import Client, Domain, MissPolicy, Provenance, Version
from hmi.errors import FailedPrecondition, Unavailable
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common.local_encoder_format import Form
from services.common.ngram_counts import NgramCounter
from services.executor.failpoints import POINTS as EXECUTOR_POINTS
from services.executor.models.encoder import load_base
from services.knowledge_store.domains.work import FAILPOINTS as STORE_POINTS
from tests.executor.split_world import write_bases, write_local
from tests.integration.cluster import TOKEN, Cluster, Process, running, until
from tests.integration.table_load import Load, blob_reader
from tests.integration.table_oracle import Oracle, is_segment, segments_of
from tests.tiny import WORDS, write_lora

pytestmark = pytest.mark.timeout(150)  # processes start anew in each step, on a machine in use

BASE = "hminilm"
UPDATE_POINTS = EXECUTOR_POINTS[EXECUTOR_POINTS.index("work_leased") :]
STEPS = [("knowledge_store", point) for point in STORE_POINTS]
STEPS += [("executor", point) for point in UPDATE_POINTS]
SHARED = "news"
COMPUTING = "lab"  # and its encoder is its own
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
        until(lambda: not any(n.is_updating for n in self.domains().values()), every_s=0.1)
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


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A store, a gateway, two executors, three tenants."""
    directory = tmp_path_factory.mktemp("faults")
    _write_split_base(directory)

    def plan(points: tuple[str, ...]) -> str:
        return ",".join(f"{point}=once:{directory / point}" for point in points)

    with ExitStack() as exits:
        cluster = exits.enter_context(
            running(
                directory, num_gateways=1, num_executors=2,
                store_env=STORE | {"HMI_STORE_FAILPOINTS": plan(STORE_POINTS)},
                executor_env={"HMI_FAILPOINTS": plan(UPDATE_POINTS)},
            )
        )  # fmt: skip
        admin = exits.enter_context(cluster.client(0))
        base = admin.add_base(BASE, directory / "hminilm")
        tenants = {
            name: exits.enter_context(cluster.client(0, cluster.tenant(name))) for name in MODELS
        }
        channel = exits.enter_context(grpc.insecure_channel(cluster.store.address))
        read = blob_reader(KnowledgeServiceStub(channel), TOKEN)
        oracle = Oracle(read, directory / "oracle", [base])
        corpus = [text for seed in range(3) for text in texts(seed, 8)]
        load = Load(oracle, corpus, dict(MODELS), tenants)
        stack = Stack(cluster, directory, admin, tenants, load, read)
        _grow(stack, directory)
        exits.enter_context(load)
        yield stack


@pytest.mark.parametrize(("service", "point"), STEPS, ids=[point for _, point in STEPS])
def test_killed_at_a_step_of_an_update_under_load_it_ends_committed_and_all_answers_are_right(
    stack: Stack, service: str, point: str
) -> None:
    before = stack.settle()
    lives = {process: process.pid for process in stack.processes(service)}
    stack.switch(point).touch()
    pushing = threading.Thread(target=stack.push, args=(stack.num_updates,))
    pushing.start()
    stack.update()
    until(lambda: not stack.switch(point).exists())
    until(lambda: any(process.pid not in (None, pid) for process, pid in lives.items()))
    for process in lives:
        process.child.wait_ready(30)
    after = stack.settle()
    pushing.join()
    for path in DOMAIN_OF.values():
        assert after[path].table_number == before[path].table_number + 1
        assert after[path].table_version != before[path].table_version
    now = {name: _following(stack, name, after[path]) for name, path in FOLLOWING.items()}
    stack.load.check()
    for name, path in FOLLOWING.items():
        assert before[path].table_version in stack.load.versions_seen[name]
        # Computed rows are the same in whatever table.
        could_be_told_apart = stack.load.differs(now[name], before[path].table_version)
        assert could_be_told_apart == (path != COMPUTING)


def _following(stack: Stack, model: str, domain: Domain) -> Provenance:
    """A model's provenance once it reads its domain's table of now."""
    tenant = next(tenant for tenant, names in MODELS.items() if model in names)
    found: list[Provenance] = []

    def is_so() -> bool:
        found.append(stack.tenants[tenant].predict(model, "the cat", timeout=30).provenance)
        return found[-1].table_version == domain.table_version

    until(is_so, every_s=0.1)
    stack.load.num_answers[tenant] += len(found)
    return found[-1]


def test_in_the_end_nothing_acknowledged_is_lost(stack: Stack) -> None:
    """After the steps: it stops the load."""
    stack.load.stop()
    stack.load.check()
    num_seen = {name: len(seen) for name, seen in stack.load.versions_seen.items()}
    for pinned, following in MODELS.values():
        assert num_seen[pinned] == 1
        assert num_seen[following] > len(STEPS)
    versions = {v.number: v for v in stack.tenants["acme"].list_versions("pushed")}
    assert len(stack.pushed) == len(STEPS)
    assert {v.number: v for v in stack.pushed} == versions
    for tenant, num_answers in stack.load.num_answers.items():
        assert stack.tenants[tenant].get_usage(tenant).num_items == num_answers
    domains = stack.domains()
    assert {path: domains[path].alpha for path in DOMAIN_OF.values()} == stack.alphas()


def test_in_the_end_no_segment_is_left_that_nothing_names(stack: Stack) -> None:
    """Placed last: it ends the executors, whose leases hold tables they have loaded."""
    for executor in stack.cluster.executors:
        executor.kill_for_good()
    named = _named_segments(stack)
    blobs = stack.directory / "data" / "blobs"

    def held() -> set[str]:
        found = set()
        for path in blobs.glob("*/*"):
            with suppress(FileNotFoundError):  # collected meanwhile
                data = path.read_bytes()
                assert hashlib.sha256(data).hexdigest() == path.name
                found |= {path.name} if is_segment(data) else set()
        return found

    until(lambda: held() == named, every_s=0.2)
    assert stack.load.segments_seen - named, "no segment ever went"


def _named_segments(stack: Stack) -> set[str]:
    """Of every domain's rows now and before its last commit, and of versions that pin a table."""
    manifests = {node.table_version for node in stack.settle().values()}
    for client in stack.tenants.values():
        for model in client.list_models():
            pinned = [v for v in client.list_versions(model.name) if not v.follow]
            manifests |= {version.table_version for version in pinned}
    for path in stack.domains():
        with suppress(FailedPrecondition):  # it never had other rows
            stack.admin.roll_back_domain(BASE, path)
        manifests |= {node.table_version for node in stack.domains().values()}
    return {sha256 for name in manifests for sha256 in segments_of(stack.blob(name))}
