"""Updates of domains when the store dies at each step, executors vanish and blobs are collected."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import StatusCode

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as dpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import ResourceExhausted
from services.common.failpoints import EXIT_STATUS
from services.knowledge_store.domains.key_blobs import KeyBlobs
from services.knowledge_store.failpoints import OF_UPDATES
from tests.knowledge_store.domain_worlds import (
    add_split_base,
    complete,
    create_domain,
    do_all_work,
    key,
    lease,
    rows_of,
    stats,
    table,
    update,
)
from tests.knowledge_store.stores import (
    Store,
    add_tenant,
    create,
    fails,
    new_version,
    running,
    running_process,
    sha256,
    start_process,
    until,
)
from tests.knowledge_store.test_process import is_alive

A = {key(5, 5, 5): 9, key(6, 6, 6): 8}
B = {key(6, 6, 6): 8, key(7, 7, 7): 40}
COLLECTING = {"gc_interval_s": 0.1, "gc_grace_s": 0.3, "lease_ms": 200}


Tables = dict[str, dict[str, dict[int, str]]]


async def grow(store: Store) -> rpb.Base:
    """A tree whose next update moves rows up from two leaves."""
    base = await add_split_base(store, root={key(1, 2, 3): 1000})
    await create_domain(store, "news")
    await create_domain(store, "news/a", A, alpha=1.0)
    await create_domain(store, "news/b", B, alpha=1.0)
    await do_all_work(store, base)
    return base


async def tables(store: Store) -> Tables:
    """Every node's rows along its path, from its manifest."""
    return {
        path: await table(store, node.domain.table_version)
        for path, node in (await stats(store)).items()
    }


@dataclass(frozen=True)
class Grown:
    """A store's directory with a tree, and its tables before and after the next update."""

    data_dir: Path
    base: rpb.Base
    before: Tables
    after: Tables


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    data_dir = tmp_path_factory.mktemp("grown")

    async def prepare() -> Grown:
        async with running(data_dir / "whole") as store:
            base = await grow(store)
            before = await tables(store)
        shutil.copytree(data_dir / "whole", data_dir / "torn")
        async with running(data_dir / "whole") as store:
            await update(store)
            await do_all_work(store, base)
            return Grown(data_dir / "torn", base, before, await tables(store))

    return asyncio.run(prepare())


async def update_and_work(store: Store, base: rpb.Base) -> None:
    await update(store)
    await do_all_work(store, base)


@pytest.mark.parametrize("point", OF_UPDATES)
async def test_a_store_killed_at_a_step_ends_the_update_after_its_restart(
    grown: Grown, tmp_path: Path, point: str
) -> None:
    data_dir = tmp_path / "torn"
    shutil.copytree(grown.data_dir, data_dir)
    async with running_process(data_dir, HMI_STORE_FAILPOINTS=f"{point}=kill@1") as store:
        assert await tables(store) == grown.before
        await fails(update_and_work(store, grown.base), StatusCode.UNAVAILABLE)
        await until(lambda: not is_alive(store.pid))

    async with running(data_dir, work_lease_ms=300) as store:
        # The old tables serve until the new ones are all there.
        assert await tables(store) in (grown.before, grown.after)
        async with asyncio.timeout(20):
            while await is_updating(store):
                await do_all_work(store, grown.base, "e2")
                await asyncio.sleep(0.05)
        assert await tables(store) == grown.after
        assert await lease(store, grown.base) is None
        assert (await update(store)).update_id == ""


async def test_the_failpoints_end_the_process_itself(tmp_path: Path) -> None:
    process = await start_process(tmp_path, HMI_STORE_FAILPOINTS="nowhere=kill@1")
    _, errors = await process.communicate()
    assert process.returncode not in (0, None, EXIT_STATUS)
    assert b"nowhere" in errors


async def test_an_acknowledged_completion_is_kept_and_answered_again(tmp_path: Path) -> None:
    async with running_process(tmp_path) as store:
        base = await add_split_base(store)
        first = await lease(store, base)
        assert first is not None
        segments = await rows_of(store, first)
        assert not await complete(store, first, segments)
    async with running_process(tmp_path) as store:
        # Killed without warning: what was completed is, and is no longer given out.
        second = await lease(store, base)
        assert second is not None
        assert second.work_id != first.work_id
        assert not await complete(store, first, segments)
        rest = await rows_of(store, second)
        assert await complete(store, second, rest)
        assert await complete(store, second, rest)
        assert (await stats(store))[""].domain.table_number == 1


async def is_updating(store: Store) -> bool:
    return any(node.domain.is_updating for node in (await stats(store)).values())


async def test_work_of_a_silent_executor_goes_to_another(tmp_path: Path) -> None:
    async with running(tmp_path, work_lease_ms=600) as store:
        base = await add_split_base(store)
        mine = [await lease(store, base) for _ in range(2)]
        assert mine[0] is not None
        assert mine[1] is not None
        assert await lease(store, base, "e2") is None
        for _ in range(8):
            renewed = await lease(store, base, "e1", mine[0].work_id)
            assert renewed == mine[0]
            await asyncio.sleep(0.1)
        taken = await lease(store, base, "e2")
        assert taken is not None
        assert taken.work_id == mine[1].work_id
        assert taken.lease_token != mine[1].lease_token
        assert await lease(store, base, "e1", mine[1].work_id) is None
        late = complete(store, mine[1], await rows_of(store, mine[1]))
        await fails(late, StatusCode.ABORTED)
        await complete(store, taken, await rows_of(store, taken))
        assert await complete(store, mine[0], await rows_of(store, mine[0]))


async def test_a_restart_gives_leased_work_a_new_lease(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        base = await add_split_base(store)
        held = await lease(store, base)
    async with running(tmp_path, work_lease_ms=500) as store:
        other = await lease(store, base, "e2")
        assert held is not None
        assert other is not None
        assert other.work_id != held.work_id
        assert await lease(store, base, "e2") is None
        assert not await complete(store, held, await rows_of(store, held))


async def test_an_update_that_nobody_works_on_is_rolled_back_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    settings = {"domain_update_timeout_s": 0.5, "work_lease_ms": 200}
    async with running(tmp_path, **settings) as store:
        base = await grow(store)
        before = await tables(store)
        update_id = (await update(store)).update_id
        assert update_id
        work = await lease(store, base)
        assert work is not None
        segments = await rows_of(store, work)
        async with asyncio.timeout(10):
            while await is_updating(store):  # noqa: ASYNC110 it ends by itself
                await asyncio.sleep(0.1)
        assert await tables(store) == before
        ended = (await stats(store))[work.path].domain.last_update
        assert (ended.update_id, ended.outcome) == (update_id, rpb.UPDATE_OUTCOME_ROLLED_BACK)
        assert "nobody worked on it for 0.5 s" in ended.reason
        assert await lease(store, base) is None
        await fails(complete(store, work, segments), StatusCode.ABORTED)
        assert (await update(store)).update_id


async def test_an_update_lasts_as_long_as_its_work_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.knowledge_store.domains.updates._ROUND_S", 0.05)
    async with running(tmp_path, domain_update_timeout_s=2.0, work_lease_ms=60_000) as store:
        base = await grow(store)
        await update(store)
        first = await lease(store, base)
        assert first is not None
        await asyncio.sleep(2.2)
        assert not await complete(store, first, await rows_of(store, first))
        # Nobody has any of its work for a moment.
        await asyncio.sleep(0.5)
        assert await do_all_work(store, base)
        assert not await is_updating(store)
        assert (await update(store)).update_id == ""


async def test_a_restart_gives_updates_under_way_the_time_they_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.knowledge_store.domains.updates._ROUND_S", 0.05)
    async with running(tmp_path) as store:
        base = await grow(store)
        await update(store)
        held = await lease(store, base)
        assert held is not None
        segments = await rows_of(store, held)
    async with running(tmp_path, domain_update_timeout_s=0.1, work_lease_ms=60_000) as store:
        await asyncio.sleep(0.5)
        assert not await complete(store, held, segments)


def blobs_on_disk(store: Store) -> set[str]:
    return {path.name for path in (store.data_dir / "blobs").glob("*/*")}


async def test_old_tables_go_unless_a_version_a_lease_or_a_roll_back_holds_them(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **COLLECTING) as store:
        base = await grow(store)
        await add_tenant(store)
        await store.blobs.write(b"adapter")
        old = {path: node.domain for path, node in (await stats(store)).items()}
        pinned = new_version(base, b"adapter", "pinned")
        pinned.version.domain = "news/a"
        following = new_version(base, b"adapter", "following")
        following.version.domain, following.version.follow = "news/b", True
        assert all(not made.error_code for made in await create(store, pinned, following))
        for _ in range(2):
            # Twice: what the roll-back of the first would need is held no more.
            await create_domain(store, f"extra{_}", {key(8, 8, _ + 1): 5000}, alpha=1.0)
            await do_all_work(store, base)
            await update(store)
            await do_all_work(store, base)
        request = dpb.SetDomainRequest(
            base="hminilm", path="news/b", miss_policy=rpb.MISS_POLICY_COMPUTE
        )
        await store.stub.SetDomain(request)
        await until(lambda: old["news/b"].table_version not in blobs_on_disk(store), 20)
        held = blobs_on_disk(store)
        assert old["news/a"].table_version in held
        assert {segment.sha256 for segment in old["news/a"].segments} <= held
        assert {segment.sha256 for segment in old[""].segments} <= held
        for version in await tables(store):
            assert version is not None
        # Every table that any node has now can be read, and every corpus be planned from.
        assert (await update(store, dry=True)).changes
        assert sha256(b"adapter") in held


async def test_nothing_of_an_update_is_left_once_its_base_is_gone(tmp_path: Path) -> None:
    async with running(tmp_path, **COLLECTING) as store:
        await grow(store)
        await update(store)
        await store.stub.DeleteBase(pb.DeleteBaseRequest(name="hminilm"))
        await until(lambda: not blobs_on_disk(store), 20)


async def test_a_tables_work_is_held_while_it_waits(tmp_path: Path) -> None:
    async with running(tmp_path, **COLLECTING) as store:
        base = await add_split_base(store)
        work = await lease(store, base)
        assert work is not None
        segments = await rows_of(store, work)
        assert not await complete(store, work, segments)
        await asyncio.sleep(1.5)
        assert await do_all_work(store, base) == 1
        root = (await stats(store))[""].domain
        assert segments[0].sha256 in {segment.sha256 for segment in root.segments}
        assert len((await table(store, root.table_version))[""]) == 51


async def test_a_full_disk_puts_a_commit_off_and_loses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await add_split_base(store)
    first, last = await lease(store, base), await lease(store, base)
    assert first is not None
    assert last is not None
    await complete(store, first, await rows_of(store, first))
    segments = await rows_of(store, last)

    async def refuse(*_: object) -> str:
        raise ResourceExhausted("the disk is full", subject="store/disk", reason="DISK_FULL")

    with monkeypatch.context() as full:
        full.setattr(KeyBlobs, "write", refuse)
        await fails(complete(store, last, segments), StatusCode.RESOURCE_EXHAUSTED)
        assert (await stats(store))[""].domain.table_version == ""
    async with asyncio.timeout(10):
        while await is_updating(store):  # noqa: ASYNC110 the store tries again by itself
            await asyncio.sleep(0.1)
    root = (await stats(store))[""].domain
    assert root.table_number == 1
    assert len((await table(store, root.table_version))[""]) == 51
