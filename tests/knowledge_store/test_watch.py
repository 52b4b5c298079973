"""Watches: a snapshot, then every change, from any revision, through everything."""

from __future__ import annotations

import asyncio
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from tests.knowledge_store.stores import (
    Store,
    View,
    add_base,
    add_tenant,
    code_of,
    create,
    follow,
    new_key,
    new_version,
    push,
    running,
    snapshot,
)


async def change_at_random(store: Store, base: rpb.Base, rng: random.Random) -> None:
    """One random change, which may fail: that must leave nothing in a watch."""
    tenant = rng.choice(["a", "b"])
    model = rng.choice(["m", "n"])
    named: dict[str, Any] = {"tenant": tenant, "model": model}
    number = rng.randrange(1, 6)
    target = rpb.TrafficTarget(version=number, percent=100)
    stub = store.stub
    member = pb.Member(member_id=model, kind=pb.MEMBER_KIND_GATEWAY, address=f"h:{number}")
    calls: list[Any] = [
        lambda: add_tenant(store, tenant),
        lambda: stub.DeleteTenant(pb.DeleteTenantRequest(tenant=tenant)),
        lambda: stub.PutKey(pb.PutKeyRequest(key=new_key(f"k{number}", tenant))),
        lambda: stub.PutKey(pb.PutKeyRequest(key=new_key(f"k{number}"), revoke=True)),
        *[lambda: create(store, new_version(base, b"one", model, tenant))] * 5,
        lambda: stub.SetTraffic(pb.SetTrafficRequest(**named, traffic=[target])),
        lambda: stub.RollBack(pb.RollBackRequest(**named)),
        lambda: stub.SetPinned(pb.SetPinnedRequest(**named, pinned=bool(number % 2))),
        lambda: stub.DeleteVersion(pb.DeleteVersionRequest(**named, version=number)),
        lambda: stub.DeleteModel(pb.DeleteModelRequest(**named)),
        lambda: stub.Register(pb.RegisterRequest(member=member)),
        lambda: stub.Unregister(pb.UnregisterRequest(member_id=model)),
    ]
    code = await code_of(rng.choice(calls)())
    assert code.name in {"OK", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION"}


def has_reached(revision: int, view: View) -> bool:
    return view.revision >= revision


async def prepared(store: Store) -> Any:
    base = await add_base(store)
    await store.blobs.write(b"one")
    return base


@pytest.mark.parametrize("seed", range(3))
async def test_following_equals_a_snapshot_after_random_changes(store: Store, seed: int) -> None:
    rng = random.Random(seed)
    base = await prepared(store)
    live, resumed = View(), View()
    following = asyncio.create_task(follow(store, live, lambda view: "last" in view["tenant"]))
    for _ in range(12):
        await asyncio.gather(*(change_at_random(store, base, rng) for _ in range(12)))
        latest = (await snapshot(store)).revision
        await follow(store, resumed, partial(has_reached, latest))
    await add_tenant(store, "last")
    await following
    expected = await snapshot(store)
    await follow(store, resumed, lambda view: view.revision >= expected.revision)
    assert live.resources == resumed.resources == expected.resources
    assert live.revision == expected.revision
    assert (live.num_snapshots, resumed.num_snapshots) == (1, 1)


async def test_twenty_watchers_see_every_change_in_order(store: Store) -> None:
    base = await prepared(store)
    views = [View() for _ in range(20)]
    following = [
        asyncio.create_task(follow(store, view, lambda view: "tenant-end" in view["tenant"]))
        for view in views
    ]
    rng = random.Random(7)
    await asyncio.gather(*(change_at_random(store, base, rng) for _ in range(60)))
    await add_tenant(store, "tenant-end")
    await asyncio.gather(*following)
    expected = (await snapshot(store)).resources
    assert all(view.resources == expected for view in views)


async def test_a_revision_older_than_the_log_gets_a_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path, log_revisions=5) as store:
        view = await snapshot(store)
        for number in range(3):
            await add_tenant(store, f"t{number}")
        await follow(store, view, lambda view: len(view["tenant"]) == 3)
        assert view.num_snapshots == 1
        for number in range(3, 10):
            await add_tenant(store, f"t{number}")
        await follow(store, view, lambda view: len(view["tenant"]) == 10)
        assert view.num_snapshots == 2


async def test_a_revision_from_the_future_gets_a_snapshot(store: Store) -> None:
    view = View()
    view.revision = 1_000_000
    await follow(store, view, lambda _: True)
    assert view.num_snapshots == 1
    assert view["key"] == ["admin"]


async def test_who_resumes_at_the_latest_revision_is_told_so_at_once(store: Store) -> None:
    view = await snapshot(store)
    call = store.stub.Watch(pb.WatchRequest(from_revision=view.revision))
    started = time.monotonic()
    assert await call.read() == pb.WatchResponse(revision=view.revision)
    assert time.monotonic() - started < 2
    call.cancel()


async def test_a_silent_watch_gives_a_sign_of_life(tmp_path: Path) -> None:
    async with running(tmp_path, sign_of_life_s=0.2) as store:
        call = store.stub.Watch(pb.WatchRequest())
        first = await call.read()
        started = time.monotonic()
        signs = [await call.read() for _ in range(3)]
        call.cancel()
        assert 0.5 < time.monotonic() - started < 3
        assert all(not sign.changes and not sign.is_snapshot for sign in signs)
        assert {sign.revision for sign in signs} == {first.revision}


async def test_a_large_snapshot_comes_in_pieces_and_its_revision_with_the_last(
    store: Store,
) -> None:
    base = await prepared(store)
    await add_tenant(store)
    await create(store, *(new_version(base, b"one", f"m{number}") for number in range(600)))
    call = store.stub.Watch(pb.WatchRequest())
    pieces = [await call.read()]
    while not pieces[-1].is_snapshot_end:
        pieces.append(await call.read())
    call.cancel()
    assert len(pieces) == 3
    assert [piece.revision for piece in pieces[:-1]] == [0, 0]
    assert sum(len(piece.changes) for piece in pieces) == 1_200 + 4


async def test_a_snapshot_of_large_versions_comes_in_messages_that_fit(store: Store) -> None:
    base = await prepared(store)
    await add_tenant(store)
    labels = ["x" * 1_000] * 800
    for number in range(90):
        new = new_version(base, b"one", f"m{number}")
        new.version.labels.extend(labels)
        await create(store, new)
    # 72 MB: one message of 500 changes would be more than the 64 MiB that a message may have.
    assert len((await snapshot(store))["version"]) == 90
    call = store.stub.Watch(pb.WatchRequest())
    sizes = []
    async for piece in call:
        sizes.append(piece.ByteSize())
        if piece.is_snapshot_end:
            break
    call.cancel()
    assert max(sizes) < 2 << 20


async def test_a_watcher_that_does_not_read_misses_nothing_and_holds_nobody_up(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, log_revisions=3) as store:
        base = await prepared(store)
        await add_tenant(store)
        call = store.stub.Watch(pb.WatchRequest())
        view = View()
        view.apply(await call.read())
        labels = ["x" * 1_000] * 100
        for number in range(250):
            new = new_version(base, b"one", f"m{number}")
            new.version.labels.extend(labels)
            await create(store, new)
        latest = (await snapshot(store)).revision
        async with asyncio.timeout(20):
            while view.revision < latest:
                view.apply(await call.read())
        call.cancel()
        assert view.resources == (await snapshot(store)).resources
        # 25 MB do not fit into the stream's window: the log went on without this watcher.
        assert view.num_snapshots > 1


async def test_a_change_reaches_a_watcher_at_once(store: Store) -> None:
    base = await prepared(store)
    await add_tenant(store)
    call = store.stub.Watch(pb.WatchRequest())
    await call.read()
    started = time.monotonic()
    await push(store, base, b"two")
    assert (await call.read()).changes
    assert time.monotonic() - started < 1
    call.cancel()
