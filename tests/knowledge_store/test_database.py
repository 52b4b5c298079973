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
    "read": lambda database: database.read(nothing),
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


async def test_reading_waits_for_no_change(database: Database) -> None:
    async with database.unchanging():
        assert await database.read(lambda transaction: transaction.sums(["none"])) == [0]


@pytest.mark.parametrize("num_changes", [1, 2, 100])
async def test_what_is_read_is_of_one_revision(database: Database, num_changes: int) -> None:
    left = num_changes

    async def write(transaction: Transaction) -> None:
        for name in ("a", "b"):
            transaction.put_record("hmi:test", name, str(left).encode())

    async def read(transaction: Transaction) -> tuple[bytes | None, bytes | None]:
        nonlocal left
        first = await transaction.record("hmi:test", "a")
        # In its turn it holds up changes: only beside it one can come between.
        if left and not database._changing.locked():
            left -= 1
            await database.change(write)
        second = await transaction.record("hmi:test", "b")
        if first != second:
            raise ValueError("no state at all")
        return first, second

    await database.change(write)
    first, second = await database.read(read)
    assert first == second
