"""The store killed at random moments, and its Redis killed, frozen and emptied."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc import StatusCode
from redis.asyncio import Redis

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import HmiError
from services.knowledge_store.metadata import Database
from tests.knowledge_store.stores import (
    Store,
    View,
    add_base,
    add_tenant,
    code_of,
    create,
    fails,
    follow,
    new_version,
    push,
    random_bytes,
    running,
    running_process,
    sha256,
    snapshot,
    until,
)
from tests.knowledge_store.test_blobs import files

MIB = 1 << 20


async def push_until_it_dies(
    store: Store, base: rpb.Base, model: str, rng: random.Random, acknowledged: dict[str, bytes]
) -> None:
    """Push version after version; note each that was acknowledged, by its full name."""
    while True:
        data = random_bytes(rng.randrange(1, 2 * MIB), rng.randrange(1 << 30))
        try:
            version = await push(store, base, data, model)
        except (HmiError, grpc.aio.AioRpcError):
            return
        acknowledged[f"acme/{model}/{version.number}"] = data


async def check_nothing_is_lost_or_torn(store: Store, acknowledged: dict[str, bytes]) -> None:
    view = await snapshot(store)
    assert set(acknowledged) <= set(view["version"])
    for name in view["version"]:
        version = rpb.Version.FromString(view.resources["version", name])
        assert name not in acknowledged or version.digest == sha256(acknowledged[name])
        # read() checks the digest, of versions that were made but not acknowledged, too.
        assert len(await store.blobs.read(version.digest)) == version.size_bytes
    for path in (store.data_dir / "blobs").rglob("*"):
        if path.is_file():
            assert sha256(path.read_bytes()) == path.name


async def test_what_was_acknowledged_survives_kill_9_at_random_moments(tmp_path: Path) -> None:
    rng = random.Random(2_026)
    acknowledged: dict[str, bytes] = {}
    async with running_process(tmp_path) as store:
        await add_tenant(store)
        base = await add_base(store)
    for _ in range(6):
        async with running_process(tmp_path) as store:
            await check_nothing_is_lost_or_torn(store, acknowledged)
            pushing = [
                asyncio.create_task(
                    push_until_it_dies(store, base, f"m{number}", rng, acknowledged)
                )
                for number in range(4)
            ]
            await asyncio.sleep(rng.uniform(0.05, 0.6))
            os.kill(store.pid, signal.SIGKILL)
            await asyncio.gather(*pushing)
    assert len(acknowledged) > 10
    ages = {"HMI_GC_GRACE_S": "1", "HMI_LEASE_MS": "500", "HMI_GC_INTERVAL_S": "0.2"}
    async with running_process(tmp_path, HMI_UPLOAD_AGE_S="0.5", **ages) as store:
        await check_nothing_is_lost_or_torn(store, acknowledged)
        view = await snapshot(store)
        held = {
            rpb.Version.FromString(view.resources["version", name]).digest
            for name in view["version"]
        } | {file.sha256 for file in base.files}
        await until(lambda: set(files(store)) == held, within_s=15)


async def persistently(store: Store, new: pb.NewVersion) -> list[pb.CreatedVersion]:
    """Create a version, as often as the answer is UNAVAILABLE."""
    while True:
        try:
            return await create(store, new)
        except grpc.aio.AioRpcError as error:
            if error.code() != StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.01)


async def read_to_the_end(watch: Any) -> None:
    async for _ in watch:
        pass


async def recover(store: Store, within_s: float = 10.0) -> None:
    """Return when a change succeeds again; until then the answer must be UNAVAILABLE."""
    async with asyncio.timeout(within_s):
        number = 0
        while (code := await code_of(add_tenant(store, f"t{number}"))) != StatusCode.OK:
            assert code == StatusCode.UNAVAILABLE
            number += 1
            await asyncio.sleep(0.02)


async def test_a_killed_valkey_is_started_again_and_nothing_is_lost(store: Store) -> None:
    base = await add_base(store)
    await add_tenant(store)
    await push(store, base, b"one")
    view = await snapshot(store)
    for _ in range(2):
        killed = store.valkey_pid
        os.kill(killed, signal.SIGKILL)
        await recover(store)
        assert store.valkey_pid != killed
    await follow(store, view, lambda view: len(view["tenant"]) > 2)
    assert view.num_snapshots == 1
    assert view["version"] == ["acme/topics/1"]


async def test_a_valkey_that_cannot_be_started_is_tried_again(store: Store) -> None:
    log = store.data_dir / "valkey" / "valkey.log"
    valkey = store.valkey_pid
    log.unlink()
    log.mkdir()
    os.kill(valkey, signal.SIGKILL)
    assert await code_of(add_tenant(store)) == StatusCode.UNAVAILABLE
    await asyncio.sleep(0.5)
    log.rmdir()
    await recover(store)


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [
        # A plain error of the kind of MISCONF, one with a class of its own, a missing right.
        ("CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0"),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("ACL SETUSER default -hset -hmget -xread", "ACL SETUSER default +@all"),
    ],
)
async def test_while_redis_refuses_calls_are_unavailable_and_then_go_on(
    store: Store, refuse: str, allow: str
) -> None:
    view = await snapshot(store)
    async with Redis.from_url(f"unix://{store.data_dir}/valkey/valkey.sock") as redis:
        await redis.execute_command(*refuse.split())
        await fails(add_tenant(store), StatusCode.UNAVAILABLE)
        await redis.execute_command(*allow.split())
    await add_tenant(store)
    await follow(store, view, lambda view: "acme" in view["tenant"])


async def test_a_defect_does_not_end_leases_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, num_defects = Database.change, 0

    async def defective(self: Database, operation: Any) -> Any:
        nonlocal num_defects
        if operation.__name__ == "end" and num_defects < 2:
            num_defects += 1
            raise ZeroDivisionError
        return await change(self, operation)

    monkeypatch.setattr(Database, "change", defective)
    async with running(tmp_path, lease_ms=300) as store:
        member = pb.Member(member_id="m", kind=pb.MEMBER_KIND_GATEWAY, address="h:1")
        await store.stub.Register(pb.RegisterRequest(member=member))
        view = await snapshot(store)
        await follow(store, view, lambda view: not view["member"])
    assert num_defects == 2


async def test_a_defect_does_not_end_watches_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, num_defects = Database.wait_for_change, 0

    async def defective(self: Database, revision: int, *, timeout_s: float) -> int:
        nonlocal num_defects
        num_defects += 1
        if num_defects == 1:
            raise ZeroDivisionError
        return await wait(self, revision, timeout_s=timeout_s)

    monkeypatch.setattr(Database, "wait_for_change", defective)
    async with running(tmp_path) as store:
        revision = (await snapshot(store)).revision
        call = store.stub.Watch(pb.WatchRequest(from_revision=revision))
        await call.read()
        await add_tenant(store)
        # Told at once, not found at the next sign of life.
        assert (await call.read()).changes
        call.cancel()


async def test_changes_while_valkey_is_killed_are_whole_and_watched(store: Store) -> None:
    base = await add_base(store)
    await add_tenant(store)
    await store.blobs.write(b"one")
    acknowledged: set[str] = set()

    async def push_all(model: str) -> None:
        for number in range(60):
            new = new_version(base, b"one", model, request_id=f"{model}-{number}")
            (outcome,) = await persistently(store, new)
            acknowledged.add(f"acme/{model}/{outcome.version.number}")

    pushing = [asyncio.create_task(push_all(f"m{number}")) for number in range(4)]
    for _ in range(3):
        await asyncio.sleep(0.1)
        os.kill(store.valkey_pid, signal.SIGKILL)
        await recover(store)
    await asyncio.gather(*pushing)
    # A request_id makes one version, whether or not the first try was answered.
    assert set((await snapshot(store))["version"]) == acknowledged
    assert len(acknowledged) == 240


async def test_while_redis_does_not_answer_calls_are_unavailable_in_bounded_time(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, redis_timeout_s=0.5) as store:
        await add_tenant(store)
        watch = store.stub.Watch(pb.WatchRequest())
        await watch.read()
        os.kill(store.valkey_pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            named = {"tenant": "acme", "model": "topics"}
            stub = store.stub
            member = pb.Member(member_id="m", kind=pb.MEMBER_KIND_GATEWAY, address="h:1")
            calls = [
                stub.DeleteTenant(pb.DeleteTenantRequest(tenant="acme")),
                stub.DeleteBase(pb.DeleteBaseRequest(name="minilm")),
                stub.CreateVersions(pb.CreateVersionsRequest(versions=[pb.NewVersion()])),
                stub.RollBack(pb.RollBackRequest(**named)),
                stub.Register(pb.RegisterRequest(member=member)),
                stub.Watch(pb.WatchRequest()).read(),
            ]
            await asyncio.gather(*(fails(call, StatusCode.UNAVAILABLE) for call in calls))
            assert time.monotonic() - started < 6
            assert await code_of(read_to_the_end(watch)) == StatusCode.UNAVAILABLE
        finally:
            os.kill(store.valkey_pid, signal.SIGCONT)
        await recover(store)


async def test_blobs_are_read_and_written_and_leases_renewed_without_redis(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, redis_timeout_s=0.3, lease_ms=500) as store:
        member = pb.Member(member_id="m", kind=pb.MEMBER_KIND_GATEWAY, address="h:1")
        await store.stub.Register(pb.RegisterRequest(member=member))
        os.kill(store.valkey_pid, signal.SIGSTOP)
        try:
            digest = await store.blobs.write(b"data")
            assert await store.blobs.read(digest) == b"data"
            for _ in range(20):
                await store.stub.RenewLease(pb.RenewLeaseRequest(member_id="m"))
                await asyncio.sleep(0.05)
        finally:
            os.kill(store.valkey_pid, signal.SIGCONT)
        await recover(store)
        assert (await snapshot(store))["member"] == ["m"]


async def test_a_cancelled_call_leaves_the_next_ones_right(store: Store) -> None:
    base = await add_base(store)
    await add_tenant(store)
    await store.blobs.write(b"one")
    rng = random.Random(3)
    for number in range(40):
        news = [new_version(base, b"one", f"m{number}-{n}") for n in range(20)]
        call = store.stub.CreateVersions(pb.CreateVersionsRequest(versions=news))
        await asyncio.sleep(rng.uniform(0, 0.01))
        call.cancel()
    view = View()
    assert (await push(store, base, b"one", "last")).number == 1
    await follow(store, view, lambda view: "acme/last" in view["model"])
    for number in range(40):
        # All or none of a call's versions, though nobody waited for it.
        assert sum(name.startswith(f"acme/m{number}-") for name in view["model"]) in (0, 20)
