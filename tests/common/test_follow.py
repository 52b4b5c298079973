"""A copy of the store's metadata goes on being fed, whatever happens to the stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common import follow as module
from services.common.follow import follow
from tests.common.knowledge import FakeStore, serving


class Copy:
    """Keeps revisions; fails when told to."""

    def __init__(self) -> None:
        self.revision = 0
        self.num_interrupted = 0
        self.failures: Iterator[Exception] = iter(())

    def apply(self, response: pb.WatchResponse) -> None:
        for failure in self.failures:
            raise failure
        self.revision = response.revision

    def interrupted(self) -> None:
        self.num_interrupted += 1


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)


@asynccontextmanager
async def following(store: FakeStore, copy: Copy) -> AsyncIterator[None]:
    async with serving(store) as stub:
        task = asyncio.create_task(follow(copy, stub))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def told(*revisions: int) -> list[pb.WatchResponse | None]:
    return [pb.WatchResponse(revision=revision) for revision in revisions]


async def test_a_broken_stream_is_taken_up_where_it_ended() -> None:
    store, copy = FakeStore(), Copy()
    store.streams = [told(1, 2), told(3)]
    async with following(store, copy):
        await until(lambda: len(store.from_revisions) == 3)
    assert store.from_revisions == [0, 2, 3]
    assert (copy.revision, copy.num_interrupted) == (3, 2)


async def test_a_stream_without_a_sign_of_life_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SILENCE_S", 0.1)
    store, copy = FakeStore(), Copy()
    store.streams = [[*told(1), None]]
    async with following(store, copy):
        await until(lambda: len(store.from_revisions) >= 2)
    assert store.from_revisions[:2] == [0, 1]


async def test_a_copy_that_fails_once_misses_nothing() -> None:
    store, copy = FakeStore(), Copy()
    copy.failures = iter([ValueError("a defect")])
    store.streams = [told(1), [*told(1, 2), None]]
    async with following(store, copy):
        await until(lambda: copy.revision == 2)
    assert store.from_revisions == [0, 0]
