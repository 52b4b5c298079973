"""The executor's side of the knowledge store, against the real one in a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc.aio
import pytest
import torch

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common.errors import DataLoss, FailedPrecondition
from services.common.follow import follow
from services.common.knowledge import BlobCache, Blobs, open_channel
from services.common.registration import Registration
from services.executor.bases import Bases
from services.executor.blobs import BlobFiles
from services.executor.engine.batching import Limits
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import ModelKey
from services.executor.follow import Follower
from services.executor.service import Executor, Options
from tests.executor.children import Child, members, put_base, running, store_child, until_members
from tests.executor.fake_base import FakeBase, loaded
from tests.executor.gateway import TOKEN

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub


class Link:
    """An executor's parts that speak to the store."""

    def __init__(self, channel: grpc.aio.Channel, directory: Path) -> None:
        stub: KnowledgeServiceAsyncStub = KnowledgeServiceStub(channel)
        self.stub = stub
        self.channel = channel
        self.blobs = Blobs(stub)
        self.executor = Executor(Options("executor-1", Limits(256, 8)))
        self.follower = Follower()
        self.files = BlobFiles(BlobCache(directory / "cache", self.blobs))
        self.fake = FakeBase()
        self.errors: dict[str, Exception] = {}  # of loading, by base
        self._tasks: list[asyncio.Task[None]] = []
        self.registration = Registration(
            stub,
            member_id="executor-1",
            kind=pb.MEMBER_KIND_EXECUTOR,
            base_digests=lambda: list(self.executor.bases),
            held_blobs=lambda: list(self.bases.held_blobs),
        )
        self.bases = Bases(
            self.executor,
            self.follower,
            self.files,
            directory=directory / "bases",
            load=self._load,
            announce=self.registration.announce,
        )

    def _load(self, directory: Path, base: resources_pb2.Base) -> LoadedBase:
        if base.name in self.errors:
            raise self.errors[base.name]
        for file in base.files:
            data = (directory / file.name).read_bytes()
            assert hashlib.sha256(data).hexdigest() == file.sha256
        self.fake = FakeBase()
        return loaded(self.fake, base.digest)

    def begin(self, part: Coroutine[Any, Any, None]) -> None:
        """Let a part run until the test ends."""
        self._tasks.append(asyncio.create_task(part))

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def put_base(self, name: str) -> resources_pb2.Base:
        """Register a base of three small files."""
        names = ("config.json", "tokenizer.json", "model.safetensors")
        files = {file: f"{name} {file}".encode() for file in names}
        return await put_base(self.stub, name, files)


def served(members: dict[str, pb.Member]) -> list[str]:
    """The bases that the executor is known to serve."""
    return list(members.get("executor-1", pb.Member()).base_digests)


async def eventually(is_so: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not is_so():  # noqa: ASYNC110  what is watched is another process
            await asyncio.sleep(0.02)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Child]:
    async with running(store_child(tmp_path / "store")) as store:
        yield store


@pytest.fixture
async def link(store: Child, tmp_path: Path) -> AsyncIterator[Link]:
    async with open_channel(store.address, TOKEN) as channel:
        link = Link(channel, tmp_path)
        async with link.executor:
            yield link
        await link.end()


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """The store's blob directory."""
    return tmp_path / "store" / "blobs"


async def test_bases_load_at_the_start_and_when_they_are_added(link: Link) -> None:
    first = await link.put_base("first")
    link.begin(follow(link.follower, link.stub))
    await link.bases.start()
    assert set(link.executor.bases) == {first.digest}
    link.begin(link.bases.run())
    second = await link.put_base("second")
    await eventually(lambda: second.digest in link.executor.bases)
    assert link.bases.held_blobs == {file.sha256 for base in (first, second) for file in base.files}


async def test_pinned_versions_are_kept_and_deleted_ones_dropped(link: Link) -> None:
    base = await link.put_base("first")
    key = ModelKey("acme", "topic", 1, await link.blobs.write(b"version"), base.digest)
    tenant = resources_pb2.Tenant(name="acme", weight=1)
    await link.stub.PutTenant(pb.PutTenantRequest(tenant=tenant, is_create=True))
    version = resources_pb2.Version(
        tenant=key.tenant,
        model=key.model,
        digest=key.digest,
        size_bytes=len(b"version"),
        base="first",
        base_digest=key.base_digest,
        task=resources_pb2.TASK_EMBEDDING,
    )
    created = await link.stub.CreateVersions(
        pb.CreateVersionsRequest(versions=[pb.NewVersion(version=version)])
    )
    assert created.versions[0].version.number == 1
    link.begin(follow(link.follower, link.stub))
    await link.bases.start()
    link.begin(link.bases.run())
    await link.stub.SetPinned(pb.SetPinnedRequest(tenant="acme", model="topic", pinned=True))
    await eventually(lambda: link.fake.pinned == {key})
    await link.stub.DeleteModel(pb.DeleteModelRequest(tenant="acme", model="topic"))
    await eventually(lambda: link.fake.forgotten == [key])
    assert link.fake.pinned == frozenset()


async def test_starting_waits_for_the_store_but_not_for_a_base(link: Link) -> None:
    link.begin(follow(link.follower, link.stub))
    await link.bases.start()
    assert link.executor.bases == {}


async def test_the_start_fails_if_no_base_can_be_served(link: Link, blobs: Path) -> None:
    base = await link.put_base("first")
    weights = base.files[2].sha256
    (blobs / weights[:2] / weights).unlink()
    link.begin(follow(link.follower, link.stub))
    with pytest.raises(FailedPrecondition, match=f"first: .*{weights}"):
        await link.bases.start()


@pytest.mark.parametrize("error", [OSError("disk"), torch.OutOfMemoryError("device")])
async def test_a_base_that_cannot_be_served_is_refused_alone(link: Link, error: Exception) -> None:
    link.errors = {"bad": error, "late": error}
    await link.put_base("bad")
    good = await link.put_base("good")
    link.begin(follow(link.follower, link.stub))
    await link.bases.start()
    assert set(link.executor.bases) == {good.digest}
    link.begin(link.bases.run())
    await link.put_base("late")
    later = await link.put_base("later")
    await eventually(lambda: set(link.executor.bases) == {good.digest, later.digest})


async def test_shared_blobs_are_read_in_place_and_verified(
    link: Link, blobs: Path, tmp_path: Path
) -> None:
    files = BlobFiles(BlobCache(tmp_path / "other", link.blobs), blobs)
    sha256 = await link.blobs.write(b"weights")
    path = await files.path(sha256)
    assert path == blobs / sha256[:2] / sha256
    torn = await link.blobs.write(b"other weights")
    (blobs / torn[:2] / torn).chmod(0o600)
    (blobs / torn[:2] / torn).write_bytes(b"torn")
    with pytest.raises(DataLoss):
        await files.path(torn)


async def test_a_member_stays_known_through_the_stores_restart(link: Link, store: Child) -> None:
    link.begin(follow(link.follower, link.stub))
    async with link.registration.held("127.0.0.1:1"):
        await link.bases.start()
        await until_members(link.stub, lambda members: "executor-1" in members)
        await store.stop()
        await asyncio.sleep(0.7)
        await store.start()
        await link.channel.channel_ready()
        base = await link.put_base("late")
        link.begin(link.bases.run())
        await until_members(link.stub, lambda members: served(members) == [base.digest])
    assert "executor-1" not in await members(link.stub)
