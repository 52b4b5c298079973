"""Tables that no version and no domain needs any more, but an executor still answers from."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import NotFound
from services.knowledge_store.domains.manifests import blobs_of
from tests.knowledge_store.domain_worlds import (
    create_domain,
    do_all_work,
    key,
    stats,
    table,
    update,
)
from tests.knowledge_store.stores import Store, running, until
from tests.knowledge_store.test_domains_faults import blobs_on_disk, grow
from tests.knowledge_store.test_leases import executor, register

COLLECTING = {"gc_interval_s": 0.1, "gc_grace_s": 0.6, "lease_ms": 500}


async def outdate(store: Store, base: rpb.Base) -> None:
    """Give every node tables so new that no roll-back leads to those of before."""
    for number in range(2):
        await create_domain(store, f"extra{number}", {key(8, 8, number + 1): 5000}, alpha=1.0)
        await do_all_work(store, base)
        await update(store)
        await do_all_work(store, base)


async def answer_from(store: Store, version: str) -> None:
    """Be an executor, for ever, that has this table open."""
    held = [version, *blobs_of(await store.blobs.read(version))]
    await register(store, executor())
    while True:
        await store.stub.RenewLease(pb.RenewLeaseRequest(member_id="e1", held_blobs=held))
        await asyncio.sleep(0.05)


async def test_an_old_table_stays_while_an_executor_answers_from_it_and_goes_after_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, **COLLECTING) as store:
        base = await grow(store)
        nodes = {path: node.domain.table_version for path, node in (await stats(store)).items()}
        held, unheld = nodes["news/a"], nodes["news/b"]
        before = await table(store, held)
        executing = asyncio.create_task(answer_from(store, held))
        await outdate(store, base)
        # The other table of the same age shows that, a grace later, the lease alone keeps this one.
        await until(lambda: unheld not in blobs_on_disk(store), 20)
        await asyncio.sleep(2 * COLLECTING["gc_grace_s"])
        assert await table(store, held) == before
        executing.cancel()
        await until(lambda: held not in blobs_on_disk(store), 20)
        with pytest.raises(NotFound):
            await store.blobs.read(held)
