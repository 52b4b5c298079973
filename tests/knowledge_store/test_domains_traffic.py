"""Traffic that shapes tables: what executors observe, who shares it, how updates follow it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as dpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from tests.knowledge_store.domain_worlds import (
    VOCAB,
    add_split_base,
    create_domain,
    do_all_work,
    key,
    observe,
    stats,
    table,
    traffic,
    update,
)
from tests.knowledge_store.stores import Store, add_tenant, fails, running

TEXT = {key(5, 6, 7): 8, key(6, 7, 8): 4}


async def share(store: Store, *tenants: str) -> None:
    for name in tenants:
        await add_tenant(store, name)
        tenant = rpb.Tenant(name=name, weight=1.0, shares_counts=True)
        await store.stub.PutTenant(pb.PutTenantRequest(tenant=tenant))


async def rows(store: Store, path: str) -> set[int]:
    node = (await stats(store))[path].domain
    return set((await table(store, node.table_version))[path])


async def test_what_three_sharing_tenants_send_enters_a_shared_domain(store: Store) -> None:
    base = await add_split_base(store, root={key(1, 2, 3): 1000})
    # Else the root, whose counts are the sum of all, would cover the most frequent itself.
    await store.stub.SetDomain(dpb.SetDomainRequest(base="hminilm", alpha=0.1))
    await create_domain(store, "news", alpha=1.0)
    await share(store, "a", "b", "c")
    await add_tenant(store, "shy")
    await do_all_work(store, base)
    await observe(store, [traffic(t, "news", TEXT) for t in ("a", "b", "shy")])
    assert (await update(store)).update_id == ""
    counted = (await stats(store))["news"]
    # The shy tenant's lookups are counted, its text is not.
    assert counted.counted_tokens == pytest.approx(24, rel=1e-3)
    assert counted.lookups.num_tokens == 36
    await observe(store, [traffic("c", "news", TEXT)], sequence=2)
    await observe(store, [traffic("c", "news", TEXT)], sequence=2)
    assert (await update(store)).update_id
    await do_all_work(store, base)
    # One update of an empty shared table may bring two rows.
    assert await rows(store, "news") == set(TEXT)


async def test_a_private_domain_follows_its_tenant_at_once_and_raises_nothing(
    store: Store,
) -> None:
    base = await add_split_base(store, root={key(1, 2, 3): 1000})
    await share(store, "a")
    await create_domain(store, "a", tenant="a", alpha=1.0)
    await do_all_work(store, base)
    text = {key(5, 6, n): n for n in range(1, 40)}
    await observe(store, [traffic("a", "a", text)])
    assert (await update(store)).update_id
    await do_all_work(store, base)
    assert await rows(store, "a") == set(text)
    assert await rows(store, "") == {key(0, n + 1, 0) for n in range(VOCAB)} | {key(1, 2, 3)}
    # Drift: in a private table nothing is bounded.
    other = {key(8, 9, n): 1_000 for n in range(1, 40)}
    await observe(store, [traffic("a", "a", other, 20_000_000)], sequence=2)
    await update(store)
    await do_all_work(store, base)
    assert await rows(store, "a") == set(other)


async def test_segments_that_became_too_many_are_written_anew(store: Store) -> None:
    base = await add_split_base(store, root={key(1, 2, 3): 1000})
    await share(store, "a")
    await create_domain(store, "a", tenant="a", alpha=1.0)
    await do_all_work(store, base)
    most, wanted = 0, set[int]()
    for number in range(1, 14):
        text = {key(5, number, n): 1_000 for n in range(1, 4)}
        await observe(store, [traffic("a", "a", text, 3_000_000)], sequence=number)
        await update(store)
        await do_all_work(store, base)
        node = (await stats(store))["a"].domain
        most = max(most, len(node.segments))
        assert set((await table(store, node.table_version))["a"]) >= set(text)
        wanted = set(text)
    assert 4 <= most <= 8
    assert wanted <= await rows(store, "a")


async def test_counts_survive_a_restart_and_are_not_counted_twice(tmp_path: Path) -> None:
    async with running(tmp_path, counts_snapshot_s=3_600) as store:
        base = await add_split_base(store)
        await share(store, "a")
        await create_domain(store, "a", tenant="a")
        await do_all_work(store, base)
        await observe(store, [traffic("a", "a", TEXT)])
    async with running(tmp_path) as store:
        await observe(store, [traffic("a", "a", TEXT)])
        assert (await stats(store))["a"].counted_tokens == pytest.approx(12, rel=1e-3)


async def test_a_schedule_updates_all_but_frozen_domains(tmp_path: Path) -> None:
    async with running(tmp_path, domain_update_s=0.2) as store:
        base = await add_split_base(store, root={key(1, 2, 3): 1000})
        await share(store, "a", "b")
        for path in ("a", "b"):
            await create_domain(store, path, tenant=path, alpha=1.0, is_frozen=path == "b")
        await do_all_work(store, base)
        await observe(store, [traffic(path, path, TEXT) for path in ("a", "b")])
        held: dict[str, Any] = {}
        while "a" not in held or not held["a"].domain.table_number:
            await do_all_work(store, base)
            held = await stats(store)
        assert held["b"].domain.table_number == 0
        assert set(await rows(store, "a")) == set(TEXT)


async def test_an_opt_out_takes_a_tenants_counts_away(store: Store) -> None:
    base = await add_split_base(store)
    await create_domain(store, "news")
    await share(store, "a")
    await do_all_work(store, base)
    await observe(store, [traffic("a", "news", TEXT)])
    assert (await stats(store))["news"].counted_tokens > 0
    await store.stub.PutTenant(pb.PutTenantRequest(tenant=rpb.Tenant(name="a", weight=1.0)))
    async with asyncio.timeout(10):
        # It is forgotten within a round of the store's own.
        while (await stats(store))["news"].counted_tokens > 0:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


MALFORMED = [
    dpb.TenantCounts(base="hminilm", path="news", tenant="a", keys=[1], counts=[]),
    dpb.TenantCounts(base="../x", path="news", tenant="a"),
    dpb.TenantCounts(base="hminilm", path="a//b", tenant="a"),
    dpb.TenantCounts(base="hminilm", path="../news", tenant="a"),
    dpb.TenantCounts(base="hminilm", path="news", tenant=""),
    dpb.TenantCounts(base="hminilm", path="news", tenant="a", num_tokens=1 << 50),
    dpb.TenantCounts(base="hminilm", path="a" * 64, tenant="a"),
]


async def test_malformed_counts_are_refused(store: Store) -> None:
    for counts in MALFORMED:
        await fails(observe(store, [counts]), StatusCode.INVALID_ARGUMENT)


async def test_counts_of_nobody_nowhere_or_of_impossible_ngrams_are_left_out(
    store: Store,
) -> None:
    base = await add_split_base(store)
    await do_all_work(store, base)
    await share(store, "a", "b")
    await create_domain(store, "a", tenant="a", alpha=1.0)
    impossible = {0: 5, key(1, 0, 0): 5, key(1, VOCAB + 1, 0): 5, (1 << 64) - 1: 5}
    await observe(
        store,
        [
            traffic("a", "a", impossible | TEXT, 12),
            traffic("b", "a", TEXT),
            traffic("a", "gone", TEXT),
            traffic("nobody", "a", TEXT),
        ],
    )
    assert (await stats(store))["a"].counted_tokens == pytest.approx(12)
    await fails(observe(store, [], sequence=0), StatusCode.INVALID_ARGUMENT)
    changes = (await update(store, "a", dry=True)).changes
    assert [(c.order, c.num_added) for c in changes] == [(3, len(TEXT))]
