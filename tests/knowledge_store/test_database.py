"""What the database does when its callers are cancelled."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from services.knowledge_store.embedded import EmbeddedValkey
from services.knowledge_store.lock import locked_directory
from services.knowledge_store.metadata import Database, Transaction


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    with locked_directory(tmp_path) as lock:
        async with EmbeddedValkey(tmp_path / "valkey", lock=lock) as valkey:
            database = Database(valkey.url, timeout_s=1.0, log_revisions=10)
            await database.wait(timeout_s=10, check=valkey.check)
            yield database
            await database.close()


async def nothing(_: Transaction) -> None:
    pass


OPERATIONS: dict[str, Callable[[Database], Awaitable[Any]]] = {
    "snapshot": lambda database: database.snapshot(),
    "changes": lambda database: database.changes_after(0, limit=1),
    "wait": lambda database: database.wait_for_change(0, timeout_s=0.01),
    "change": lambda database: database.change(nothing),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_a_cancelled_caller_ends_whenever_it_is_cancelled(
    database: Database, name: str
) -> None:
    rng = random.Random(1)

    async def call_for_ever() -> None:
        while True:
            await OPERATIONS[name](database)

    for _ in range(100):
        task = asyncio.create_task(call_for_ever())
        await asyncio.sleep(rng.uniform(0, 0.003))
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.cancelled()
