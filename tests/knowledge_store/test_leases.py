"""Members and their leases, and what may be collected."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from pydantic import ValidationError

from hmi.knowledge.v1 import knowledge_pb2 as pb
from tests.knowledge_store.stores import (
    Store,
    View,
    add_base,
    add_tenant,
    create,
    fails,
    follow,
    new_version,
    push,
    running,
    settings_of,
    sha256,
    snapshot,
    until,
)
from tests.knowledge_store.test_blobs import files, write

SHORT: dict[str, Any] = {
    "lease_ms": 400,
    "gc_interval_s": 0.1,
    "gc_grace_s": 0.5,
    "upload_age_s": 0.5,
}


def executor(member_id: str = "e1", address: str = "127.0.0.1:1") -> pb.Member:
    return pb.Member(
        member_id=member_id, kind=pb.MEMBER_KIND_EXECUTOR, address=address,
        base_digests=[sha256(b"base")],
    )  # fmt: skip


async def register(store: Store, member: pb.Member) -> int:
    response = await store.stub.Register(pb.RegisterRequest(member=member))
    return int(response.lease_ms)


async def renew(store: Store, *held: bytes, member_id: str = "e1") -> None:
    blobs = [sha256(data) for data in held]
    await store.stub.RenewLease(pb.RenewLeaseRequest(member_id=member_id, held_blobs=blobs))


async def test_a_member_is_announced_and_unregistered(store: Store) -> None:
    assert await register(store, executor()) == 10_000
    view = await snapshot(store)
    assert pb.Member.FromString(view.resources["member", "e1"]) == executor()
    await store.stub.Unregister(pb.UnregisterRequest(member_id="e1"))
    await store.stub.Unregister(pb.UnregisterRequest(member_id="e1"))
    await follow(store, view, lambda view: not view["member"])
    renewal = store.stub.RenewLease(pb.RenewLeaseRequest(member_id="e1"))
    await fails(renewal, StatusCode.NOT_FOUND)


async def test_registering_again_changes_the_address_and_costs_nothing_if_it_is_the_same(
    store: Store,
) -> None:
    await register(store, executor())
    view = await snapshot(store)
    await register(store, executor())
    assert (await snapshot(store)).revision == view.revision
    await register(store, executor(address="127.0.0.1:2"))
    held = (await snapshot(store)).resources["member", "e1"]
    assert pb.Member.FromString(held).address == "127.0.0.1:2"


@pytest.mark.parametrize(
    "member",
    [
        pb.Member(kind=pb.MEMBER_KIND_GATEWAY, address="h:1"),
        pb.Member(member_id="m", address="h:1"),
        pb.Member(member_id="m", kind=pb.MEMBER_KIND_GATEWAY),
        pb.Member(
            member_id="m", kind=pb.MEMBER_KIND_EXECUTOR, address="h:1", base_digests=["../x"]
        ),
    ],
)
async def test_a_malformed_member_is_refused(store: Store, member: pb.Member) -> None:
    registration = store.stub.Register(pb.RegisterRequest(member=member))
    await fails(registration, StatusCode.INVALID_ARGUMENT)


async def test_a_silent_member_is_announced_as_gone_and_a_renewing_one_stays(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **SHORT) as store:
        await register(store, executor("silent"))
        await register(store, executor("alive"))

        async def keep_alive() -> None:
            while True:
                await renew(store, member_id="alive")
                await asyncio.sleep(0.05)

        alive = asyncio.create_task(keep_alive())
        view = View()
        await follow(store, view, lambda view: view["member"] == ["alive"])
        await asyncio.sleep(0.8)
        assert (await snapshot(store))["member"] == ["alive"]
        alive.cancel()
        await follow(store, view, lambda view: view["member"] == [])


async def test_members_survive_a_restart_if_they_renew(tmp_path: Path) -> None:
    async with running(tmp_path, lease_ms=1_000, gc_grace_s=2) as store:
        await register(store, executor("e1"))
        await register(store, executor("e2"))
    async with running(tmp_path, lease_ms=1_000, gc_grace_s=2) as store:
        view = await snapshot(store)
        assert view["member"] == ["e1", "e2"]
        for _ in range(15):
            await renew(store)
            await asyncio.sleep(0.1)
        assert (await snapshot(store))["member"] == ["e1"]


async def wait_until_gone(store: Store, data: bytes) -> float:
    """Seconds until the blob is collected."""
    path = store.data_dir / "blobs" / sha256(data)[:2] / sha256(data)
    started = time.monotonic()
    await until(lambda: not path.exists())
    return time.monotonic() - started


async def test_a_blob_that_nothing_holds_is_collected_after_the_grace(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as store:
        await store.blobs.write(b"orphan")
        assert await wait_until_gone(store, b"orphan") > 0.4
        await store.blobs.write(b"orphan")
        assert await store.blobs.read(sha256(b"orphan")) == b"orphan"


async def test_blobs_of_bases_versions_and_leases_are_kept(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as store:
        base = await add_base(store)
        await add_tenant(store)
        await push(store, base, b"version")
        await register(store, executor())
        await store.blobs.write(b"leased")
        await store.blobs.write(b"orphan")
        started = time.monotonic()
        while time.monotonic() - started < 2:
            await renew(store, b"leased")
            await asyncio.sleep(0.05)
        kept = {file.sha256 for file in base.files} | {sha256(b"version"), sha256(b"leased")}
        assert set(files(store)) == kept
        await renew(store)
        await wait_until_gone(store, b"leased")


async def test_a_deleted_versions_blob_is_kept_as_long_as_a_lease_holds_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **SHORT) as store:
        base = await add_base(store)
        await add_tenant(store)
        await push(store, base, b"version")
        await register(store, executor())
        await renew(store, b"version")
        await store.stub.DeleteModel(pb.DeleteModelRequest(tenant="acme", model="topics"))
        for _ in range(20):
            await renew(store, b"version")
            await asyncio.sleep(0.05)
        assert await store.blobs.read(sha256(b"version")) == b"version"
        # Nobody renews any more: the lease ends, then the grace.
        assert await wait_until_gone(store, b"version") > 0.4


async def test_asking_for_a_blob_keeps_it_for_the_grace(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as store:
        await store.blobs.write(b"orphan")
        for _ in range(30):
            state = await store.stub.StatBlob(pb.StatBlobRequest(sha256=sha256(b"orphan")))
            assert state.is_complete
            await asyncio.sleep(0.05)


async def test_pushing_and_deleting_under_collection_never_loses_a_versions_blob(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **SHORT | {"gc_interval_s": 0.02}) as store:
        base = await add_base(store)
        await add_tenant(store)

        async def churn(model: str) -> None:
            named: dict[str, Any] = {"tenant": "acme", "model": model}
            for _ in range(5):
                version = await push(store, base, model.encode(), model)
                assert await store.blobs.read(version.digest) == model.encode()
                await asyncio.sleep(0.3)
                assert await store.blobs.read(version.digest) == model.encode()
                await store.stub.DeleteModel(pb.DeleteModelRequest(**named))
                await asyncio.sleep(0.5)

        await asyncio.gather(*(churn(f"m{number}") for number in range(10)))


async def test_a_version_of_a_collected_blob_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as store:
        base = await add_base(store)
        await add_tenant(store)
        await store.blobs.write(b"orphan")
        await wait_until_gone(store, b"orphan")
        (outcome,) = await create(store, new_version(base, b"orphan"))
        assert outcome.error_code == StatusCode.FAILED_PRECONDITION.value[0]


async def test_an_interrupted_upload_is_collected_after_its_age(tmp_path: Path) -> None:
    async with running(tmp_path, **SHORT) as store:
        await fails(write(store, b"x" * 100, end=50), StatusCode.DATA_LOSS)
        (part,) = (store.data_dir / "uploads").glob("*.part")
        await until(lambda: not part.exists())


async def test_an_old_file_is_not_collected_before_the_store_has_watched_it_for_the_grace(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as store:
        await store.blobs.write(b"old")
    path = tmp_path / "blobs" / sha256(b"old")[:2] / sha256(b"old")
    os.utime(path, (1, 1))
    async with running(tmp_path, **SHORT) as store:
        assert await wait_until_gone(store, b"old") > 0.3


def test_a_grace_shorter_than_a_lease_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        settings_of(tmp_path, lease_ms=2_000, gc_grace_s=1.0)
