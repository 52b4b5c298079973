"""A split base's life with the real store: tables made by executors that die at every step."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from google.rpc import code_pb2

from hmi.admin.v1 import resources_pb2
from hmi.executor.v1 import executor_pb2
from hmi.knowledge.v1 import domain_pb2, knowledge_pb2
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common import ngrams
from services.common.failpoints import EXIT_STATUS
from services.common.knowledge import BlobCache, Blobs, open_channel
from services.common.ngram_counts import NgramCounts
from services.executor.blobs import BlobFiles
from services.executor.config import ExecutorSettings
from services.executor.engine.batching import Batcher, Limits
from services.executor.engine.engine import Engine
from services.executor.engine.loop import EngineLoop
from services.executor.loading import Loader
from services.executor.materialise import Worker, worker
from services.executor.plot.manifest import Manifest
from tests.executor.children import Child, running
from tests.executor.gateway import TOKEN, Gateway
from tests.executor.split_world import keys_of, lora, random_texts, write_bases

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

POINTS = ("work_leased", "rows_computed", "segment_written", "before_complete", "after_complete")


class Store:
    """The real store with a split base, and what can be asked of it."""

    def __init__(self, directory: Path, child: Child, stub: KnowledgeServiceAsyncStub) -> None:
        self.directory = directory
        self.child = child
        self.stub = stub
        self.base = resources_pb2.Base()

    async def add_base(self) -> None:
        _, base = write_bases(self.directory)
        for file in base.files:
            await Blobs(self.stub).write((self.directory / "hminilm" / file.name).read_bytes())
        request = knowledge_pb2.PutBaseRequest(base=base)
        self.base = (await self.stub.PutBase(request)).base

    async def domain(self, path: str = "") -> resources_pb2.Domain:
        """The node as it is now."""
        request = domain_pb2.GetDomainStatsRequest(base=self.base.name)
        nodes = (await self.stub.GetDomainStats(request)).nodes
        return next(node.domain for node in nodes if node.domain.path == path)

    async def updated(self, path: str = "") -> resources_pb2.Domain:
        """The node once nobody works on it."""
        async with asyncio.timeout(40):
            while (domain := await self.domain(path)).is_updating:  # noqa: ASYNC110  elsewhere
                await asyncio.sleep(0.05)
        return domain

    async def add_domain(self, path: str, seed: int) -> None:
        keys = keys_of(random_texts(4, seed))
        counts = NgramCounts(keys, np.ones_like(keys), len(keys), self.base.tokenizer_digest)
        request = domain_pb2.CreateDomainRequest(
            domain=resources_pb2.Domain(base=self.base.name, path=path, alpha=1.0),
            counts_sha256=await Blobs(self.stub).write(counts.to_bytes()),
        )
        await self.stub.CreateDomain(request)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    settings = {
        "HMI_DATA_DIR": str(tmp_path / "store"),
        "HMI_LEASE_MS": "600",
        "HMI_WORK_LEASE_MS": "500",
    }
    async with (
        running(Child("services.knowledge_store", settings)) as child,
        open_channel(child.address, TOKEN) as channel,
    ):
        store = Store(tmp_path, child, KnowledgeServiceStub(channel))
        await store.add_base()
        yield store


class Killed(BaseException):
    """Ends a worker as the end of its process would."""


@asynccontextmanager
async def computing(store: Store) -> AsyncIterator[tuple[Loader, EngineLoop, BlobFiles]]:
    """What workers share: a loaded base's parts and an engine's thread."""
    settings = ExecutorSettings(
        knowledge_address="localhost:1", cache_dir=store.directory, device="cpu", dtype="float32"
    )
    files = BlobFiles(BlobCache(store.directory / "cache", Blobs(store.stub)))
    loop = EngineLoop(Engine({}), Batcher({}, Limits(256, 8)), lambda _events: None)
    loop.start()
    yield Loader(settings, files, lambda: None), loop, files
    await asyncio.to_thread(loop.stop)


async def test_a_worker_lost_at_any_step_is_replaced_and_the_update_ends_committed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "POLL_S", 0.05)
    async with computing(store) as (loader, loop, files):
        loaded = await asyncio.to_thread(loader.load, store.directory / "hminilm", store.base)

        async def work(name: str, dies_at: str = "") -> None:
            def reach(point: str, _num: int) -> None:
                if point == dies_at:
                    raise Killed

            made = Worker(
                store.stub, name, {loaded.digest: loaded}, files,
                directory=store.directory / "work", run_aside=loop.run_aside, reach=reach,
            )  # fmt: skip
            await made.run()

        surviving = asyncio.create_task(work("survivor"))
        root = await store.updated()
        assert root.table_number == 1
        surviving.cancel()
        for number, point in enumerate(POINTS):
            path = f"d{number}"
            await store.add_domain(path, seed=10 + number)
            with pytest.raises(Killed):
                await work(f"victim-{number}", point)
            surviving = asyncio.create_task(work(f"survivor-{number}"))
            domain = await store.updated(path)
            surviving.cancel()
            assert domain.table_number == 1
            assert {segment.order for segment in domain.segments} == {2, 3}
            manifest = Manifest.from_bytes(await Blobs(store.stub).read(domain.table_version))
            assert [node.path for node in manifest.nodes] == ["", path]
        await asyncio.to_thread(loaded.close)


def executor(store: Store, **settings: str) -> Child:
    given = {
        "HMI_KNOWLEDGE_ADDRESS": store.child.address,
        "HMI_CACHE_DIR": str(store.directory / "executor"),
        "HMI_DEVICE": "cpu",
        "HMI_DTYPE": "float32",
        "HMI_NUM_THREADS": "1",
    }
    return Child("services.executor", {**given, **settings})


async def test_a_killed_executors_table_is_finished_by_the_next_which_answers_and_counts(
    store: Store,
) -> None:
    first = executor(store, HMI_FAILPOINTS="segment_written=kill@2")
    await first.start()
    assert (await first.end())[0] == EXIT_STATUS
    await store.stub.PutTenant(
        knowledge_pb2.PutTenantRequest(
            tenant=resources_pb2.Tenant(name="acme", shares_counts=True), is_create=True
        )
    )
    async with running(executor(store)) as child, open_channel(child.address, TOKEN) as channel:
        root = await store.updated()
        digest = await Blobs(store.stub).write(lora(store.directory / "lora", 1))
        gateway = Gateway(channel)
        await gateway.hello()
        ids = random_texts(1, seed=1)[0]
        key = executor_pb2.ModelKey(
            tenant="acme", model="m", version=1, digest=digest, base_digest=store.base.digest
        )

        def submit(item_id: int, table_version: str) -> executor_pb2.Submit:
            return executor_pb2.Submit(
                item_id=item_id, key=key, token_ids=ids, table_version=table_version,
                tokenizer_digest=store.base.tokenizer_digest,
            )  # fmt: skip

        gone = hashlib.sha256(b"gone").hexdigest()
        versions = [root.table_version, "", "no sha256", gone]
        await gateway.submit(*(submit(n, version) for n, version in enumerate(versions)))
        events = await gateway.answers(0, 1, 2, 3)
        assert [event.error.code for event in events] == [
            code_pb2.OK,
            code_pb2.INVALID_ARGUMENT,
            code_pb2.INVALID_ARGUMENT,
            code_pb2.FAILED_PRECONDITION,
        ]
        assert np.isfinite(np.frombuffer(events[0].output.data, "<f4")).all()
        request = domain_pb2.GetDomainStatsRequest(base=store.base.name)
        async with asyncio.timeout(20):
            while True:
                [stats] = (await store.stub.GetDomainStats(request)).nodes
                if stats.lookups.num_tokens:
                    break
                await asyncio.sleep(0.1)
        # Every n-gram of the text is in the root.
        orders = ngrams.order_of(ngrams.keys_of(ids, [len(ids)]))
        assert stats.lookups.num_tokens == len(ids)
        assert stats.lookups.num_trigram == int((orders == 3).sum())


async def test_what_an_executor_looked_up_last_is_counted_when_it_stops(store: Store) -> None:
    await store.stub.PutTenant(
        knowledge_pb2.PutTenantRequest(
            tenant=resources_pb2.Tenant(name="acme", shares_counts=True), is_create=True
        )
    )
    child = executor(store)
    await child.start()
    root = await store.updated()
    digest = await Blobs(store.stub).write(lora(store.directory / "lora", 1))
    texts = random_texts(20, seed=2)
    key = executor_pb2.ModelKey(
        tenant="acme", model="m", version=1, digest=digest, base_digest=store.base.digest
    )
    async with open_channel(child.address, TOKEN) as channel:
        gateway = Gateway(channel)
        await gateway.hello()
        await gateway.submit(
            *(
                executor_pb2.Submit(
                    item_id=number, key=key, token_ids=ids, table_version=root.table_version,
                    tokenizer_digest=store.base.tokenizer_digest,
                )
                for number, ids in enumerate(texts)
            )
        )  # fmt: skip
        await gateway.answers(*range(len(texts)))
        assert await child.stop() == 0
    request = domain_pb2.GetDomainStatsRequest(base=store.base.name)
    [stats] = (await store.stub.GetDomainStats(request)).nodes
    assert stats.lookups.num_tokens == sum(map(len, texts))
