"""Manifests are written beside the changes that name them."""

from __future__ import annotations

import asyncio
import json

import pytest

from hmi.knowledge.v1 import domain_pb2 as dpb
from services.knowledge_store.domains.key_blobs import KeyBlobs
from tests.knowledge_store.domain_worlds import (
    add_split_base,
    complete,
    create_domain,
    do_all_work,
    lease,
    rows_of,
    stats,
)
from tests.knowledge_store.stores import Store, add_tenant, until
from tests.knowledge_store.test_domains_faults import A

NUM_CHILDREN = 5


async def test_changes_go_on_while_a_commits_manifests_are_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await add_split_base(store)
    for number in range(NUM_CHILDREN):
        await create_domain(store, f"d{number}")
    first, last = await lease(store, base), await lease(store, base)
    assert first is not None
    assert last is not None
    await complete(store, first, await rows_of(store, first))
    write, is_open, begun = KeyBlobs.write, asyncio.Event(), []

    async def waiting(self: KeyBlobs, data: bytes) -> str:
        begun.append(data)
        await is_open.wait()
        return await write(self, data)

    monkeypatch.setattr(KeyBlobs, "write", waiting)
    ending = asyncio.create_task(complete(store, last, await rows_of(store, last)))
    # The root's and its children's at once, and the lock of changes is free.
    await until(lambda: len(begun) == 1 + NUM_CHILDREN)
    await asyncio.wait_for(add_tenant(store), 20)
    is_open.set()
    assert await ending
    assert all(node.domain.table_version for node in (await stats(store)).values())


async def test_a_tree_that_changed_while_manifests_were_written_is_named_as_it_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await add_split_base(store)
    await do_all_work(store, base)
    await create_domain(store, "news", A, alpha=1.0)
    await create_domain(store, "news/a")
    write, is_first = KeyBlobs.write, True
    request = dpb.SetDomainRequest(base="hminilm", path="news/a", miss_policy="MISS_POLICY_COMPUTE")

    async def changing(self: KeyBlobs, data: bytes) -> str:
        nonlocal is_first
        if is_first:
            is_first = False
            await store.stub.SetDomain(request)
        return await write(self, data)

    monkeypatch.setattr(KeyBlobs, "write", changing)
    await do_all_work(store, base)
    nodes = await stats(store)
    manifest = json.loads(await store.blobs.read(nodes["news/a"].domain.table_version))
    assert manifest["miss_policy"] == "compute"
    assert [node["table_number"] for node in manifest["nodes"]] == [1, 1, 0]
