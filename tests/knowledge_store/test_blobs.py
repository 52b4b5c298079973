"""Blobs over RPC: resumed, torn, wrong, too large, written twice at once, read from anywhere."""

from __future__ import annotations

import asyncio
import random
import resource
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.knowledge_store import uploads
from tests.knowledge_store.stores import (
    Store,
    code_of,
    fails,
    random_bytes,
    running,
    sha256,
    until,
)

MIB = 1 << 20


async def messages(
    digest: str, size: int, data: bytes, offset: int = 0, chunk: int = MIB, owner: str = ""
) -> AsyncIterator[pb.WriteBlobRequest]:
    yield pb.WriteBlobRequest(sha256=digest, size_bytes=size, offset=offset, owner=owner)
    for start in range(0, len(data), chunk):
        yield pb.WriteBlobRequest(data=data[start : start + chunk])


def write(
    store: Store, data: bytes, offset: int = 0, end: int | None = None, **changed: Any
) -> Any:
    """WriteBlob of `data[offset:end]`, as a part of the whole `data`."""
    digest = changed.get("digest", sha256(data))
    size = changed.get("size", len(data))
    chunk = changed.get("chunk", MIB)
    owner = changed.get("owner", "")
    return store.stub.WriteBlob(messages(digest, size, data[offset:end], offset, chunk, owner))


async def held(store: Store, data: bytes, owner: str = "") -> tuple[int, bool]:
    state = await store.stub.StatBlob(pb.StatBlobRequest(sha256=sha256(data), owner=owner))
    return state.committed_bytes, state.is_complete


def files(store: Store) -> list[str]:
    """Everything below blobs/ and uploads/."""
    return sorted(
        path.name
        for directory in ("blobs", "uploads")
        for path in (store.data_dir / directory).rglob("*")
        if path.is_file()
    )


@contextmanager
def files_at_most(size_bytes: int) -> Iterator[None]:
    """A disk on which no file of this process grows larger: writing fails as on a full one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 5 * MIB + 3])
async def test_a_blob_reads_back_as_it_was_written(store: Store, size: int) -> None:
    data = random_bytes(size, seed=size)
    assert (await write(store, data)).committed_bytes == size
    assert await held(store, data) == (size, True)
    assert await store.blobs.read(sha256(data)) == data
    assert files(store) == [sha256(data)]
    assert (store.data_dir / "blobs" / sha256(data)[:2] / sha256(data)).read_bytes() == data


async def test_a_blob_is_read_from_any_offset_in_chunks_of_a_mebibyte(store: Store) -> None:
    data = random_bytes(3 * MIB + 5, seed=1)
    await write(store, data)
    for offset in (0, 1, MIB, 3 * MIB + 4, len(data)):
        request = pb.ReadBlobRequest(sha256=sha256(data), offset=offset)
        responses = [response async for response in store.stub.ReadBlob(request)]
        assert b"".join(response.data for response in responses) == data[offset:]
        assert {response.size_bytes for response in responses} == {len(data)}
        assert max(len(response.data) for response in responses) <= MIB


async def read_all(store: Store, digest: str, offset: int = 0) -> list[pb.ReadBlobResponse]:
    call = store.stub.ReadBlob(pb.ReadBlobRequest(sha256=digest, offset=offset))
    return [response async for response in call]


async def test_reading_what_is_not_there_or_past_the_end_is_refused(store: Store) -> None:
    await fails(read_all(store, sha256(b"none")), StatusCode.NOT_FOUND)
    await write(store, b"short")
    await fails(read_all(store, sha256(b"short"), 6), StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 65, "/" * 64, "a" * 63 + "\n"]
)
async def test_a_name_that_is_no_digest_touches_no_path(store: Store, name: str) -> None:
    stat = store.stub.StatBlob(pb.StatBlobRequest(sha256=name))
    await fails(stat, StatusCode.INVALID_ARGUMENT)
    await fails(write(store, b"x", digest=name), StatusCode.INVALID_ARGUMENT)
    await fails(read_all(store, name), StatusCode.INVALID_ARGUMENT)
    assert files(store) == []


async def test_a_wrong_digest_is_refused_and_nothing_is_left(store: Store) -> None:
    wrong = sha256(b"something else")
    await fails(write(store, b"data", digest=wrong), StatusCode.INVALID_ARGUMENT)
    assert files(store) == []


async def test_more_bytes_than_announced_are_refused_and_nothing_is_left(store: Store) -> None:
    await fails(write(store, b"data", size=3), StatusCode.INVALID_ARGUMENT)
    assert files(store) == []


async def test_an_empty_stream_is_refused(store: Store) -> None:
    async def nothing() -> AsyncIterator[pb.WriteBlobRequest]:
        return
        yield

    await fails(store.stub.WriteBlob(nothing()), StatusCode.INVALID_ARGUMENT)


async def test_a_truncated_upload_is_data_loss_and_can_be_resumed(store: Store) -> None:
    data = random_bytes(2 * MIB, seed=2)
    await fails(write(store, data, end=MIB + 7), StatusCode.DATA_LOSS)
    assert await held(store, data) == (MIB + 7, False)
    await fails(read_all(store, sha256(data)), StatusCode.NOT_FOUND)
    await write(store, data, offset=MIB + 7)
    assert await store.blobs.read(sha256(data)) == data
    assert files(store) == [sha256(data)]


async def test_an_offset_that_is_not_what_is_held_is_refused_and_keeps_it(store: Store) -> None:
    data = random_bytes(1_000, seed=3)
    await fails(write(store, data, offset=10), StatusCode.FAILED_PRECONDITION)
    await fails(write(store, data, end=500), StatusCode.DATA_LOSS)
    await fails(write(store, data, offset=499), StatusCode.FAILED_PRECONDITION)
    assert await held(store, data) == (500, False)


async def test_an_upload_may_begin_again_at_zero(store: Store) -> None:
    data = random_bytes(1_000, seed=4)
    await fails(write(store, data, end=500), StatusCode.DATA_LOSS)
    await fails(write(store, data, end=300), StatusCode.DATA_LOSS)
    assert await held(store, data) == (300, False)
    await write(store, data)
    assert await held(store, data) == (1_000, True)


async def test_a_torn_part_is_found_by_the_digest_and_dropped(store: Store) -> None:
    data = random_bytes(1_000, seed=5)
    await fails(write(store, data, end=500), StatusCode.DATA_LOSS)
    (part,) = (store.data_dir / "uploads").glob("*.part")
    part.write_bytes(b"\0" * 500)
    await fails(write(store, data, offset=500), StatusCode.INVALID_ARGUMENT)
    assert await held(store, data) == (0, False)
    await write(store, data)
    assert await store.blobs.read(sha256(data)) == data


async def test_who_knows_a_digest_neither_ends_nor_drops_anothers_upload(store: Store) -> None:
    data = random_bytes(1_000, seed=10)
    await fails(write(store, data, end=600, owner="acme"), StatusCode.DATA_LOSS)
    assert await held(store, data, "acme") == (600, False)
    assert await held(store, data, "../mallory") == (0, False)
    tail = write(store, data, offset=600, owner="../mallory")
    await fails(tail, StatusCode.FAILED_PRECONDITION)
    await fails(write(store, data, end=10, owner="../mallory"), StatusCode.DATA_LOSS)
    wrong = write(store, b"x" * 1_000, digest=sha256(data), owner="../mallory")
    await fails(wrong, StatusCode.INVALID_ARGUMENT)
    assert await held(store, data, "acme") == (600, False)
    await write(store, data, offset=600, owner="acme")
    assert await held(store, data, "../mallory") == (1_000, True)
    assert files(store) == [sha256(data)]


async def test_a_cancelled_upload_is_kept_to_be_resumed(store: Store) -> None:
    data = random_bytes(MIB, seed=6)
    arrived = asyncio.Event()

    async def stalling() -> AsyncIterator[pb.WriteBlobRequest]:
        yield pb.WriteBlobRequest(sha256=sha256(data), size_bytes=MIB, data=data[:1_000])
        await arrived.wait()

    call = store.stub.WriteBlob(stalling())
    task = asyncio.ensure_future(call)
    directory = store.data_dir / "uploads"
    await until(lambda: any(path.stat().st_size for path in directory.glob("*.active")))
    assert await held(store, data) == (0, False)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: any(directory.glob("*.part")))
    assert await held(store, data) == (1_000, False)
    arrived.set()
    await write(store, data, offset=1_000)
    assert files(store) == [sha256(data)]


async def test_a_blob_larger_than_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with running(tmp_path, max_blob_bytes=1_000) as store:
        await write(store, b"x" * 1_000)
        await fails(write(store, b"x" * 1_001), StatusCode.RESOURCE_EXHAUSTED)
        assert files(store) == [sha256(b"x" * 1_000)]


async def test_a_full_disk_is_resource_exhausted_and_nothing_is_left(store: Store) -> None:
    data = random_bytes(3 * MIB, seed=7)
    with files_at_most(MIB + 100):
        await fails(write(store, data), StatusCode.RESOURCE_EXHAUSTED)
        assert files(store) == []
    await write(store, data)
    assert await store.blobs.read(sha256(data)) == data


async def test_many_writers_of_one_blob_all_succeed(store: Store) -> None:
    data = random_bytes(2 * MIB, seed=8)
    responses = await asyncio.gather(*(write(store, data, chunk=65_536) for _ in range(8)))
    assert {response.committed_bytes for response in responses} == {len(data)}
    assert files(store) == [sha256(data)]


async def test_a_blob_is_seen_only_when_its_name_is_durable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"renamed, not yet durable"
    may_end = threading.Event()

    def slow_sync(directory: Path) -> None:
        may_end.wait()
        sync_directory(directory)

    sync_directory = uploads.sync_directory
    monkeypatch.setattr(uploads, "sync_directory", slow_sync)
    writing = [asyncio.ensure_future(write(store, data)) for _ in range(2)]
    try:
        await until((store.data_dir / "blobs" / sha256(data)[:2] / sha256(data)).exists)
        assert await held(store, data) == (0, False)
    finally:
        may_end.set()
    await asyncio.gather(*writing)
    assert await held(store, data) == (len(data), True)


async def test_a_start_makes_names_durable_that_a_killed_process_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    sync_directory = uploads.sync_directory
    monkeypatch.setattr(
        uploads, "sync_directory", lambda path: (synced.append(path), sync_directory(path))
    )
    async with running(tmp_path):
        shards = {tmp_path / "blobs" / f"{number:02x}" for number in range(256)}
        assert shards <= set(synced)


async def test_uploads_broken_at_random_points_end_whole(store: Store) -> None:
    rng = random.Random(20)
    for seed in range(25):
        data = random_bytes(rng.randrange(1, 300_000), seed)
        for _ in range(rng.randrange(4)):
            offset, is_complete = await held(store, data)
            end = rng.randrange(offset, len(data) + 1)
            chunk = rng.choice([997, 65_536, MIB])
            code = await code_of(write(store, data, offset=offset, end=end, chunk=chunk))
            is_whole = is_complete or end == len(data)
            assert code == (StatusCode.OK if is_whole else StatusCode.DATA_LOSS)
            assert await held(store, data) == (len(data) if is_whole else end, is_whole)
        offset, _ = await held(store, data)
        await write(store, data, offset=rng.choice([0, offset]))
        assert await store.blobs.read(sha256(data)) == data
    assert list((store.data_dir / "uploads").iterdir()) == []


async def test_what_a_crash_left_is_resumed_by_its_longest_file(tmp_path: Path) -> None:
    data = random_bytes(1_000, seed=9)
    left = tmp_path / "uploads"
    left.mkdir()
    for name, size in (("part", 10), ("a.active", 600), ("b.active", 300)):
        (left / f"{uploads.upload_key(sha256(data), '')}.{name}").write_bytes(data[:size])
    async with running(tmp_path) as store:
        assert await held(store, data) == (600, False)
        await write(store, data, offset=600)
        assert files(store) == [sha256(data)]
