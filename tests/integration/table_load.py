"""Tenants that keep asking their models, and keep every answer to be checked against an oracle."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import grpc
import numpy as np

from hmi.client import Classification, Client, Provenance
from hmi.errors import FailedPrecondition, HmiError
from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from tests.integration.table_oracle import Oracle

PAUSE_S = 0.05
DAMAGED = "BLOB_DAMAGED"
TOLERANCE = 1e-3  # rows are fp16, and computed ones may differ in their last place

_Answer = TypeVar("_Answer")


def while_away(call: Callable[[], _Answer], within_s: float = 20.0) -> _Answer:
    """What a call of the store's answers, once the store is back if it is not there."""
    end = time.monotonic() + within_s
    while True:
        try:
            return call()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE or time.monotonic() > end:
                raise
            time.sleep(0.05)


def blob_reader(stub: KnowledgeServiceStub, token: str) -> Callable[[str], bytes]:
    """Reads blobs from a store that dies at times."""

    def read(sha256: str) -> bytes:
        request = pb.ReadBlobRequest(sha256=sha256)
        metadata = (("authorization", f"Bearer {token}"),)
        return b"".join(part.data for part in stub.ReadBlob(request, metadata=metadata))

    return lambda sha256: while_away(lambda: read(sha256))


@dataclass(frozen=True)
class Given:
    """An answer that a tenant got."""

    provenance: Provenance
    text: str
    scores: np.ndarray


class Load:
    """Predicts without end, one thread a tenant; a context manager.

    Args:
        oracle: Learns each table while it is certainly there.
        texts: What is asked.
        models: Names of each tenant's models.
        clients: Each tenant's.

    Attributes:
        num_answers: Texts answered, by tenant.
        versions_seen: Table versions that answered and were checked, by model.
        errors: Of calls that failed though the client tried again.
        refusals: Those of them that name a damaged segment.
    """

    def __init__(
        self,
        oracle: Oracle,
        texts: Sequence[str],
        models: dict[str, Sequence[str]],
        clients: dict[str, Client],
    ) -> None:
        self._oracle = oracle
        self._texts = texts
        self._models = models
        self._clients = clients
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._given: list[Given] = []
        self._learning: dict[tuple[str, str, str], Future[None]] = {}
        self._learner = ThreadPoolExecutor(1)
        self._threads = [
            threading.Thread(target=self._ask, args=(tenant, seed))
            for seed, tenant in enumerate(models)
        ]
        self.num_answers: Counter[str] = Counter()
        self.versions_seen: dict[str, set[str]] = defaultdict(set)
        self.errors: list[HmiError] = []
        self.refusals: list[HmiError] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._learner.shutdown()

    def stop(self) -> None:
        """Ask no more; again does nothing."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Hold every answer since the last check to the oracle's; `versions_seen` then has the
        table versions that answered, by model."""
        assert not self.errors, self.errors
        with self._lock:
            given, self._given = self._given, []
            learning = list(self._learning.values())
        for future in learning:
            future.result(30)
        for one in given:
            expected = self._oracle.scores(one.provenance, one.text)
            off = float(np.abs(one.scores - expected).max())
            assert off < TOLERANCE, (off, one)
            self.versions_seen[one.provenance.model].add(one.provenance.table_version)

    def has_answered(self, model: str, table_version: str) -> bool:
        """Whether an answer came, checked or not, that names this table version."""
        with self._lock:
            given = {one.provenance.table_version for one in self._given
                     if one.provenance.model == model}  # fmt: skip
        return table_version in given | self.versions_seen[model]

    def differs(self, of: Provenance, table_version: str) -> bool:
        """Whether another table version would have answered some text noticeably otherwise: else
        the check could not tell them apart."""
        other = replace(of, table_version=table_version)
        pairs = [[self._oracle.scores(one, text) for one in (of, other)] for text in self._texts]
        return max(float(np.abs(mine - its).max()) for mine, its in pairs) > 10 * TOLERANCE

    def _ask(self, tenant: str, seed: int) -> None:
        rng = random.Random(seed)
        client = self._clients[tenant]
        while not self._stop.wait(PAUSE_S):
            model = rng.choice(self._models[tenant])
            texts = rng.sample(self._texts, rng.randint(1, 3))
            try:
                answers = client.predict(model, texts, timeout=30)
            except HmiError as error:
                is_damage = isinstance(error, FailedPrecondition) and error.reason == DAMAGED
                (self.refusals if is_damage else self.errors).append(error)
                continue
            scores = [
                np.array([label.score for label in one.scores])
                for one in answers
                if isinstance(one, Classification)
            ]
            self._keep(tenant, answers.provenance, texts, scores)

    def _keep(
        self, tenant: str, of: Provenance, texts: Sequence[str], scores: Sequence[np.ndarray]
    ) -> None:
        named = (of.base_digest, of.digest, of.table_version)
        with self._lock:
            if named not in self._learning:
                self._learning[named] = self._learner.submit(self._oracle.learn, of)
            self._given += [Given(of, *one) for one in zip(texts, scores, strict=True)]
            self.num_answers[tenant] += len(texts)
