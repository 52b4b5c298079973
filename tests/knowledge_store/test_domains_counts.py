"""Whose counts they are, through deletions and losses: of the domain there was when they came."""

from __future__ import annotations

from pathlib import Path

import pytest

from hmi.knowledge.v1 import domain_pb2 as dpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.knowledge_store.domains.records import Corpus, get_table, put_table
from services.knowledge_store.embedded.valkey import socket_path
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.transaction import Transaction
from tests.knowledge_store.domain_worlds import (
    add_split_base,
    create_domain,
    do_all_work,
    key,
    observe,
    stats,
    traffic,
    update,
)
from tests.knowledge_store.stores import Store, add_tenant, running
from tests.knowledge_store.test_domains_traffic import share

TEXT = {key(5, 6, 7): 8, key(6, 7, 8): 4}
LONG_AGO = 1_000_000_000  # tokens: many half-lives


async def test_a_base_deleted_and_added_again_begins_with_its_own_corpus(store: Store) -> None:
    base = await add_split_base(store)
    await share(store, "a")
    await do_all_work(store, base)
    await observe(store, [traffic("a", "", TEXT, LONG_AGO)])
    await store.stub.DeleteBase(pb.DeleteBaseRequest(name="hminilm"))
    base = await add_split_base(store)
    await do_all_work(store, base)
    root = (await stats(store))[""]
    assert root.counted_tokens == pytest.approx(9)
    assert root.lookups.num_tokens == 0
    assert not any(change.num_removed for change in (await update(store, dry=True)).changes)


async def test_a_domain_of_a_deleted_tenants_path_shows_nothing_of_it(store: Store) -> None:
    await add_split_base(store)
    await share(store, "a", "b")
    await create_domain(store, "a", tenant="a")
    await observe(store, [traffic("a", "a", TEXT, LONG_AGO)])
    await store.stub.DeleteTenant(pb.DeleteTenantRequest(tenant="a"))
    await create_domain(store, "a", {key(1, 2, 3): 5})
    node = (await stats(store))["a"]
    assert node.lookups.num_tokens == 0
    assert node.counted_tokens == pytest.approx(5)


async def test_a_private_domain_counts_nothing_of_a_shared_one_that_had_its_path(
    store: Store,
) -> None:
    await add_split_base(store)
    await share(store, "b")
    await add_tenant(store, "a")
    await create_domain(store, "a")
    await observe(store, [traffic("b", "a", TEXT)])
    await store.stub.DeleteDomain(dpb.DeleteDomainRequest(base="hminilm", path="a"))
    await create_domain(store, "a", tenant="a", alpha=1.0)
    assert list((await update(store, "a", dry=True)).changes) == []


async def test_counts_of_what_was_deleted_do_not_return_with_the_snapshot(tmp_path: Path) -> None:
    async with running(tmp_path, counts_snapshot_s=3_600) as store:
        await add_split_base(store)
        await share(store, "a")
        await create_domain(store, "a", tenant="a")
        await observe(store, [traffic("a", "a", TEXT, LONG_AGO)])
    old = (tmp_path / "frequencies.npz").read_bytes()
    async with running(tmp_path) as store:
        await store.stub.DeleteDomain(dpb.DeleteDomainRequest(base="hminilm", path="a"))
        await create_domain(store, "a", {key(1, 2, 3): 5})
    # As a crash before the next snapshot leaves it.
    (tmp_path / "frequencies.npz").write_bytes(old)
    async with running(tmp_path) as store:
        assert (await stats(store))["a"].counted_tokens == pytest.approx(5)


async def test_losing_the_counts_breaks_neither_statistics_nor_updates(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        base = await add_split_base(store)
        await create_domain(store, "news", {key(4, 5, 6): 5})
        await do_all_work(store, base)
        before = (await update(store, dry=True)).changes
        corpus = await _corpus_given_at(store, "news", clock=float(LONG_AGO * 1_000))
    (tmp_path / "frequencies.npz").unlink(missing_ok=True)
    async with running(tmp_path) as store:
        assert (await stats(store))["news"].counted_tokens == pytest.approx(corpus.num_tokens)
        assert (await update(store, dry=True)).changes == before
        assert (await update(store)).update_id


async def _corpus_given_at(store: Store, path: str, clock: float) -> Corpus:
    """Let a domain's corpus be as if it had been given when the domain's clock showed this."""
    url = f"unix://{socket_path(store.data_dir / 'valkey')}"
    database = Database(url, timeout_s=1.0, log_revisions=100)
    try:

        async def change(transaction: Transaction) -> Corpus:
            table = await get_table(transaction, "hminilm", path)
            corpus = table.corpora[0].model_copy(update={"clock": clock})
            put_table(transaction, "hminilm", path, table.model_copy(update={"corpora": (corpus,)}))
            return corpus

        return await database.change(change)
    finally:
        await database.close()
