"""What is missing or replaced under a tree: others go on, what was planned for it is refused."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import NotFound
from services.knowledge_store.domains.planner import Planner
from tests.knowledge_store.domain_worlds import (
    add_split_base,
    counts_blob,
    create_domain,
    do_all_work,
    key,
    stats,
    table,
    update,
)
from tests.knowledge_store.stores import Store, fails, running, sha256
from tests.knowledge_store.test_domains_faults import A, grow


def lose(store: Store, digest: str) -> None:
    """Lose a blob, as a disk does."""
    (store.data_dir / "blobs" / digest[:2] / digest).unlink()


async def test_a_lost_corpus_stops_the_updates_of_no_other_domain(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    base = await grow(store)
    lose(store, sha256(counts_blob(A)))
    assert (await update(store)).update_id
    await do_all_work(store, base)
    nodes = await stats(store)
    assert nodes[""].domain.table_number == 2
    # What made its rows is gone, so they stay.
    rows = await table(store, nodes["news/a"].domain.table_version)
    assert set(rows["news/a"]) == {key(5, 5, 5), key(6, 6, 6)}
    (said,) = [r for r in caplog.records if r.levelno == logging.WARNING and "corpus" in r.message]
    assert (said.base, said.path) == ("hminilm", "news/a")  # type: ignore[attr-defined]


async def test_a_tree_that_cannot_be_planned_is_told_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Planner.update
    planned = asyncio.Event()

    async def damaged(self: Planner, base: str, path: str, **options: Any) -> Any:
        if base == "a":
            raise NotFound("there is no blob of its keys")
        planned.set()
        return await plan(self, base, path, **options)

    monkeypatch.setattr("services.knowledge_store.domains.updates._ROUND_S", 0.05)
    monkeypatch.setattr(Planner, "update", damaged)
    async with running(tmp_path, domain_update_s=0.1) as store:
        for number, name in enumerate("ab", 1):
            base = await add_split_base(store, name, root={key(number, 2, 3): 9})
            await do_all_work(store, base)
        planned.clear()
        await asyncio.wait_for(planned.wait(), 10)
    told = [r for r in caplog.records if r.message == "a scheduled update is left out"]
    assert {r.base for r in told if r.levelno == logging.WARNING} >= {"a"}  # type: ignore[attr-defined]


async def test_a_table_planned_for_a_base_that_was_replaced_is_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await add_split_base(store)
    await do_all_work(store, base)
    draft = Planner.first_draft

    async def replaced(self: Planner, *arguments: Any) -> Any:
        made = await draft(self, *arguments)
        await store.stub.DeleteBase(pb.DeleteBaseRequest(name="hminilm"))
        other = await add_split_base(store, root={key(4, 4, 4): 9})
        assert other.digest != base.digest
        return made

    monkeypatch.setattr(Planner, "first_draft", replaced)
    error = await fails(create_domain(store, "news", A), StatusCode.FAILED_PRECONDITION)
    assert error.reason == "BASE_CHANGED"
    assert set(await stats(store)) == {""}
