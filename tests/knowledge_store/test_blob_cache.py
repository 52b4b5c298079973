"""The cache that services keep of the store's blobs: bounded, shared, and never wrong."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common.errors import NotFound, Unavailable
from services.common.knowledge import BlobCache, Blobs
from tests.knowledge_store.stores import Store, random_bytes, sha256


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_a_blob_is_fetched_once_and_then_served_without_the_store(
    store: Store, tmp_path: Path
) -> None:
    digest = await store.blobs.write(b"data")
    cache = BlobCache(tmp_path / "cache", store.blobs)
    paths = await asyncio.gather(*(cache.path(digest) for _ in range(8)))
    (store.data_dir / "blobs" / digest[:2] / digest).unlink()
    assert {await cache.path(digest), *paths} == {tmp_path / "cache" / digest}
    assert (await cache.path(digest)).read_bytes() == b"data"
    assert names(tmp_path / "cache") == {digest}


async def test_what_lies_wrongly_in_the_cache_is_fetched_again(
    store: Store, tmp_path: Path
) -> None:
    digest = await store.blobs.write(b"data")
    for wrong in (b"", b"dat", b"dxta"):
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache" / digest).write_bytes(wrong)
        cache = BlobCache(tmp_path / "cache", store.blobs)
        assert (await cache.path(digest)).read_bytes() == b"data"


async def test_a_file_that_vanishes_is_fetched_again(store: Store, tmp_path: Path) -> None:
    digest = await store.blobs.write(b"data")
    cache = BlobCache(tmp_path, store.blobs)
    (await cache.path(digest)).unlink()
    assert (await cache.path(digest)).read_bytes() == b"data"


async def test_the_least_recently_used_blobs_go(store: Store, tmp_path: Path) -> None:
    digests = [await store.blobs.write(random_bytes(1_000, seed)) for seed in range(4)]
    directory = tmp_path / "cache"
    cache = BlobCache(directory, store.blobs, max_bytes=3_500)
    for digest in (*digests[:3], digests[0]):
        await cache.path(digest)
        await asyncio.sleep(0.01)
    await cache.path(digests[3])
    assert names(directory) == {digests[0], digests[2], digests[3]}
    assert sha256((await cache.path(digests[1])).read_bytes()) == digests[1]
    # A smaller budget holds from the start on.
    BlobCache(directory, store.blobs, max_bytes=1_500)
    assert names(directory) == {digests[1]}


async def test_a_blob_larger_than_the_budget_is_held_while_it_is_the_last(
    store: Store, tmp_path: Path
) -> None:
    digest = await store.blobs.write(random_bytes(1_000, 1))
    cache = BlobCache(tmp_path / "cache", store.blobs, max_bytes=10)
    assert (await cache.path(digest)).stat().st_size == 1_000


async def test_nothing_is_left_of_a_failed_fetch(store: Store, tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "cache", store.blobs)
    with pytest.raises(NotFound):
        await cache.path(sha256(b"none"))
    assert names(tmp_path / "cache") == set()


class _Slow(Blobs):
    """Blobs that stop after their first piece until told to go on."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.stub)
        self.began, self.may_end = asyncio.Event(), asyncio.Event()

    async def chunks(self, sha256: str) -> AsyncIterator[bytes]:
        async for chunk in super().chunks(sha256):
            yield chunk
            self.began.set()
            await self.may_end.wait()


async def test_a_start_deletes_what_killed_processes_left_but_nothing_in_work(
    store: Store, tmp_path: Path
) -> None:
    directory = tmp_path / "cache"
    directory.mkdir()
    digest = await store.blobs.write(b"data")
    descriptor, _ = tempfile.mkstemp(dir=directory, prefix="tmp")
    os.close(descriptor)
    slow = _Slow(store)
    fetching = asyncio.create_task(BlobCache(directory, slow).path(digest))
    await slow.began.wait()
    BlobCache(directory, store.blobs)
    assert len(names(directory)) == 1
    slow.may_end.set()
    assert (await fetching).read_bytes() == b"data"
    assert names(directory) == {digest}


async def test_a_cancelled_fetch_leaves_nothing_and_the_next_succeeds(
    store: Store, tmp_path: Path
) -> None:
    digest = await store.blobs.write(b"data")
    slow = _Slow(store)
    cache = BlobCache(tmp_path / "cache", slow)
    fetching = asyncio.create_task(cache.path(digest))
    await slow.began.wait()
    fetching.cancel()
    await asyncio.wait([fetching])
    assert names(tmp_path / "cache") == set()
    slow.may_end.set()
    assert (await cache.path(digest)).read_bytes() == b"data"


async def test_a_blob_is_durable_before_it_has_its_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = await store.blobs.write(b"data")
    synced: list[bool] = []
    directory = tmp_path / "cache"
    fsync = os.fsync

    def observed(descriptor: int) -> None:
        synced.append(digest not in names(directory))
        fsync(descriptor)

    cache = BlobCache(directory, store.blobs)
    monkeypatch.setattr(os, "fsync", observed)
    await cache.path(digest)
    assert synced == [True]


async def test_an_unreachable_store_is_unavailable_for_what_is_not_cached(
    store: Store, tmp_path: Path
) -> None:
    class Away(Blobs):
        async def chunks(self, sha256: str) -> AsyncIterator[bytes]:
            raise Unavailable("away")
            yield

    digest = await store.blobs.write(b"data")
    await BlobCache(tmp_path / "cache", store.blobs).path(digest)
    cache = BlobCache(tmp_path / "cache", Away(store.stub))
    assert (await cache.path(digest)).read_bytes() == b"data"
    with pytest.raises(Unavailable):
        await cache.path(sha256(b"other"))
