"""Damaged blobs are set aside when they are read, and segments among them made anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from grpc import StatusCode

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as dpb
from services.common.errors import DataLoss, NotFound
from services.common.ngram_counts import keys_from_bytes
from services.knowledge_store import metrics
from tests.knowledge_store.domain_worlds import (
    add_split_base,
    complete,
    create_domain,
    do_all_work,
    key,
    lease,
    segment_blob,
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
    until,
)

NEWS = {key(5, 5, 5): 9, key(6, 6, 6): 8}
COLLECTING = {"gc_interval_s": 0.2, "gc_grace_s": 1.5, "lease_ms": 200}


async def grow(store: Store) -> rpb.Base:
    base = await add_split_base(store, root={key(1, 2, 3): 1000})
    await create_domain(store, "news", NEWS, alpha=1.0)
    await do_all_work(store, base)
    return base


async def node_of(store: Store, path: str = "news") -> rpb.Domain:
    return (await stats(store))[path].domain


async def a_segment(store: Store) -> str:
    """The only segment of a node."""
    return (await node_of(store)).segments[0].sha256


def file_of(store: Store, sha256: str) -> Path:
    return store.data_dir / "blobs" / sha256[:2] / sha256


def damage(store: Store, sha256: str, change: Callable[[bytearray], None]) -> bytes:
    """Change a blob's file behind the store's back; what it was."""
    path = file_of(store, sha256)
    whole = path.read_bytes()
    data = bytearray(whole)
    change(data)
    path.write_bytes(data)
    return whole


def in_values(data: bytearray) -> None:
    data[-1] ^= 1


def in_keys(data: bytearray) -> None:
    """The first key gets the greater."""
    data[8 + int.from_bytes(data[:8], "little") + 7] ^= 0x40


def in_the_encoders_name(data: bytearray) -> None:
    at = data.index(b"encoder_sha256") + 20
    data[at] = ord("0") if data[at] != ord("0") else ord("1")


def cut(data: bytearray) -> None:
    del data[len(data) // 2 :]


def set_aside(store: Store) -> list[str]:
    return sorted(path.name for path in (store.data_dir / "damaged").iterdir())


def repairs(outcome: str) -> float:
    return metrics.domain_repairs_total.labels(outcome)._value.get()


async def work_for(store: Store, base: rpb.Base) -> dpb.Work:
    """The next piece of work, once there is one."""
    async with asyncio.timeout(10):
        while (work := await lease(store, base)) is None:  # noqa: ASYNC110 the store's round
            await asyncio.sleep(0.05)
    return work


async def test_a_damaged_segment_is_never_sent_and_its_very_bytes_come_back(
    store: Store,
) -> None:
    base = await grow(store)
    before, rows = await node_of(store), await table(store, (await node_of(store)).table_version)
    sha256 = await a_segment(store)
    restored = repairs("restored")
    whole = damage(store, sha256, in_values)
    with pytest.raises(DataLoss, match=sha256):
        await store.blobs.read(sha256)
    with pytest.raises(NotFound):
        await store.blobs.read(sha256)
    assert set_aside(store) == [sha256]
    work = await work_for(store, base)
    assert (work.path, work.order, work.num_entries) == ("news", 3, 2)
    assert await do_all_work(store, base, "e2") == 0
    keys = keys_from_bytes(await store.blobs.read(work.keys_sha256))
    data = segment_blob(work, keys)
    await store.blobs.write(data)
    segment = rpb.Segment(sha256=sha256, order=3, num_entries=2, size_bytes=len(data))
    await complete(store, work, [segment])
    await until(lambda: not set_aside(store))
    assert await store.blobs.read(sha256) == whole
    after = await node_of(store)
    assert after == before
    assert await table(store, after.table_version) == rows
    assert repairs("restored") == restored + 1
    await asyncio.sleep(1.2)
    assert await lease(store, base) is None


@pytest.mark.parametrize("change", [in_keys, in_the_encoders_name, cut])
async def test_where_the_keys_cannot_be_trusted_the_domain_gets_a_new_table_of_the_same_rows(
    store: Store, change: Callable[[bytearray], None]
) -> None:
    base = await grow(store)
    sha256 = await a_segment(store)
    before = await node_of(store)
    rows = await table(store, before.table_version)
    rewritten = repairs("rewritten")
    damage(store, sha256, change)
    await fails_to_read(store, sha256)
    work = await work_for(store, base)
    await write_and_complete(store, work, is_other=False)
    await do_all_work(store, base)
    async with asyncio.timeout(10):
        while (after := await node_of(store)).table_number == before.table_number:
            await do_all_work(store, base)
            await asyncio.sleep(0.05)
    assert after.table_version != before.table_version
    assert await table(store, after.table_version) == rows
    assert repairs("rewritten") == rewritten + 1
    assert not after.is_updating


async def test_executors_that_round_otherwise_give_a_new_table_and_no_way_back(
    store: Store,
) -> None:
    base = await grow(store)
    sha256 = await a_segment(store)
    before = await node_of(store)
    damage(store, sha256, in_values)
    await fails_to_read(store, sha256)
    first = await work_for(store, base)
    await write_and_complete(store, first, is_other=True)
    second = await work_for(store, base)
    assert second.work_id != first.work_id
    assert await write_and_complete(store, second, is_other=True)
    after = await node_of(store)
    assert after.table_number == before.table_number + 1
    assert sha256 not in {segment.sha256 for segment in after.segments}
    request = dpb.RollBackDomainRequest(base=base.name, path="news")
    error = await fails(store.stub.RollBackDomain(request), StatusCode.FAILED_PRECONDITION)
    assert error.reason == "NO_PREVIOUS_TABLE"


async def test_a_store_that_was_killed_goes_on_with_what_was_set_aside(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        base = await grow(store)
        sha256 = await a_segment(store)
        damage(store, sha256, in_values)
        await fails_to_read(store, sha256)
    async with running(tmp_path) as store:
        work = await work_for(store, base)
        await write_and_complete(store, work, is_other=False)
        await until(lambda: not set_aside(store))
        assert await store.blobs.read(sha256)
        assert (await update(store)).update_id


async def test_a_damaged_manifest_is_written_again(store: Store) -> None:
    await grow(store)
    node = await node_of(store)
    rows = await table(store, node.table_version)
    damage(store, node.table_version, cut)
    await fails_to_read(store, node.table_version)
    await until(lambda: not set_aside(store))
    assert await node_of(store) == node
    assert await table(store, node.table_version) == rows


async def test_any_damaged_blob_may_be_written_again_and_goes_once_nobody_needs_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **COLLECTING) as store:
        base = await grow(store)
        await add_tenant(store)
        sha256 = await store.blobs.write(b"adapter")
        assert not (await create(store, new_version(base, b"adapter")))[0].error_code
        damage(store, sha256, in_values)
        await fails_to_read(store, sha256)
        await asyncio.sleep(0.5)
        assert set_aside(store)[0].startswith(sha256)
        await store.blobs.write(b"adapter")
        assert await store.blobs.read(sha256) == b"adapter"
        await until(lambda: not set_aside(store))
        unneeded = await store.blobs.write(b"nobody's")
        damage(store, unneeded, in_values)
        await fails_to_read(store, unneeded)
        await until(lambda: not set_aside(store))


async def fails_to_read(store: Store, sha256: str) -> None:
    with pytest.raises(DataLoss):
        await store.blobs.read(sha256)


async def write_and_complete(store: Store, work: dpb.Work, *, is_other: bool) -> bool:
    """Complete work as an executor does, or as one whose rows differ."""
    keys = keys_from_bytes(await store.blobs.read(work.keys_sha256))
    data = bytearray(segment_blob(work, keys))
    if is_other:
        data[-2:] = np.float16(3.5).tobytes()
    digest = await store.blobs.write(bytes(data))
    segment = rpb.Segment(
        sha256=digest, order=work.order, num_entries=len(keys), size_bytes=len(data)
    )
    return await complete(store, work, [segment])
