"""Updates beside one another: who waits for whom, in which order work goes out, what gives up."""

from __future__ import annotations

from pathlib import Path

import pytest
from grpc import StatusCode

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as dpb
from services.knowledge_store.domains.planner import Planner
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
from tests.knowledge_store.stores import Store, add_tenant, fails, running
from tests.knowledge_store.test_domains_faults import grow

OWN = {key(9, 9, 9): 9}


async def work_on(store: Store, base: rpb.Base, *paths: str) -> None:
    """Complete what there is to do for these nodes, and hold what there is for others."""
    while work := await lease(store, base):
        if work.path in paths:
            await complete(store, work, await rows_of(store, work))


async def test_a_tenants_unfinished_table_keeps_nobody_waiting(store: Store) -> None:
    base = await grow(store)
    await add_tenant(store)
    await create_domain(store, "acme", OWN, tenant="acme")
    await create_domain(store, "acme/below", tenant="acme")
    assert (await update(store)).update_id
    # That of other nodes goes on, and of these nothing else.
    await fails(update(store, "news/a"), StatusCode.FAILED_PRECONDITION)
    await fails(update(store, "acme"), StatusCode.FAILED_PRECONDITION)
    await work_on(store, base, "", "news", "news/a", "news/b")
    nodes = await stats(store)
    assert not nodes["news"].domain.is_updating
    assert nodes["acme"].domain.is_updating
    assert key(6, 6, 6) in (await table(store, nodes["news"].domain.table_version))["news"]
    request = dpb.RollBackDomainRequest(base="hminilm", path="news/b")
    assert (await store.stub.RollBackDomain(request)).domain.table_number == 3


async def test_domains_that_come_and_go_do_not_stop_an_update(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grow(store)
    await add_tenant(store)
    await create_domain(store, "acme", OWN, tenant="acme")
    start = Planner._start

    async def churning(self: object, facts: object, draft: object) -> bool:
        request = dpb.DeleteDomainRequest(base="hminilm", path="acme")
        await store.stub.DeleteDomain(request)
        await create_domain(store, "acme", OWN, tenant="acme")
        return await start(self, facts, draft)  # type: ignore[arg-type]

    monkeypatch.setattr(Planner, "_start", churning)
    assert (await update(store)).update_id


async def test_work_goes_out_by_age(store: Store) -> None:
    base = await add_split_base(store)
    await do_all_work(store, base)
    await create_domain(store, "zebra", OWN)
    await create_domain(store, "aaa", {key(8, 8, 8): 9})
    leased = [await lease(store, base) for _ in range(2)]
    assert [work.path for work in leased if work is not None] == ["zebra", "aaa"]


async def test_a_first_table_that_cannot_be_made_is_given_up_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.knowledge_store.domains.updates._ROUND_S", 0.05)
    async with running(tmp_path, work_lease_ms=100, work_tries=2) as store:
        base = await add_split_base(store)
        await do_all_work(store, base)
        await create_domain(store, "bad", OWN)
        num_tries = 0
        while (await stats(store))["bad"].domain.is_updating:
            # An executor that fails holds its lease, and never completes.
            num_tries += await lease(store, base) is not None
        bad = (await stats(store))["bad"].domain
        assert num_tries == 2
        assert (bad.table_version, bad.last_update.outcome) == (
            "", rpb.UPDATE_OUTCOME_ROLLED_BACK,
        )  # fmt: skip
        assert "2 tries" in bad.last_update.reason
        error = await fails(update(store, "bad"), StatusCode.FAILED_PRECONDITION)
        assert error.reason == "NO_TABLE"
        await store.stub.DeleteDomain(dpb.DeleteDomainRequest(base="hminilm", path="bad"))
        await create_domain(store, "bad", OWN)
        await do_all_work(store, base)
        bad = (await stats(store))["bad"].domain
        assert (bad.table_number, bad.last_update.outcome) == (1, rpb.UPDATE_OUTCOME_COMMITTED)
        assert bad.last_update.end_time.seconds


async def test_a_root_is_tried_until_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.knowledge_store.domains.updates._ROUND_S", 0.05)
    async with running(tmp_path, work_lease_ms=100, work_tries=1) as store:
        base = await add_split_base(store)
        tokens: set[str] = set()
        while len(tokens) < 6:
            if work := await lease(store, base):
                tokens.add(work.lease_token)
        assert (await stats(store))[""].domain.is_updating
