"""Who waits for whom: large domains and many versions hold up neither event loop nor changes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.knowledge_store.domains import drafts, observing
from services.knowledge_store.metadata import transaction
from services.knowledge_store.metadata.kinds import VERSIONS
from tests.knowledge_store.domain_worlds import (
    add_split_base,
    create_domain,
    do_all_work,
    key,
    observe,
    stats,
    traffic,
)
from tests.knowledge_store.stores import Store, add_tenant, push
from tests.knowledge_store.test_domains_traffic import share


async def test_keys_are_worked_on_beside_the_event_loop(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: dict[str, set[threading.Thread]] = {}

    def watch(module: Any, name: str) -> None:
        work = getattr(module, name)

        def watched(*arguments: Any) -> Any:
            threads.setdefault(name, set()).add(threading.current_thread())
            return work(*arguments)

        monkeypatch.setattr(module, name, watched)

    for module, name in (
        (drafts, "order_of"), (drafts, "without"), (observing, "is_key"),
        (observing, "in_vocabulary"),
    ):  # fmt: skip
        watch(module, name)
    base = await add_split_base(store)
    await share(store, "a")
    await create_domain(store, "a", {key(5, 6, 7): 8}, tenant="a")
    await do_all_work(store, base)
    await observe(store, [traffic("a", "a", {key(6, 7, 8): 4})])
    assert set(threads) == {"order_of", "without", "is_key", "in_vocabulary"}
    assert threading.current_thread() not in set().union(*threads.values())


async def test_bytes_of_a_domains_versions_are_kept_not_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await add_split_base(store)
    await add_tenant(store)
    await do_all_work(store, base)
    for number in range(3):
        await push(store, base, b"adapter" * (number + 1), f"m{number}")
    load = transaction.Transaction.load

    async def checked(self: Any, kind: Any, names: Any) -> None:
        assert kind is not VERSIONS
        await load(self, kind, names)

    with monkeypatch.context() as patch:
        patch.setattr(transaction.Transaction, "load", checked)
        root = (await stats(store))[""]
    assert (root.num_versions, root.version_bytes) == (3, 6 * len(b"adapter"))
    await store.stub.DeleteModel(pb.DeleteModelRequest(tenant="acme", model="m1"))
    root = (await stats(store))[""]
    assert (root.num_versions, root.version_bytes) == (2, 4 * len(b"adapter"))
    await store.stub.DeleteTenant(pb.DeleteTenantRequest(tenant="acme"))
    assert (await stats(store))[""].version_bytes == 0
