"""Damaged blobs: found by their digest, fetched anew or refused, never read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from services.common.errors import FailedPrecondition
from services.common.knowledge import BlobCache, Blobs
from services.executor.blobs import BlobFiles
from services.executor.loading import BlobReader
from services.executor.plot.manifest import Manifest
from tests.executor.split_world import World, keys_of, random_texts, split_world

TEXTS = random_texts(3)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with split_world(tmp_path) as world:
        await world.load("hminilm")
        yield world


def a_segment(world: World, version: str) -> str:
    """One of the version's segments."""
    return Manifest.from_bytes(world.store.blobs[version]).segments[-1].sha256


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 0x10
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.parametrize("damaged", ["segment", "adapter"])
async def test_what_is_damaged_on_this_machine_is_fetched_anew(world: World, damaged: str) -> None:
    version = world.tables(keys_of(TEXTS))
    digest = world.adapter(1)
    [expected] = await world.answers(world.item(TEXTS[0], digest, version))
    for loaded in world.bases.values():
        loaded.close()
    blob = {"segment": a_segment(world, version), "adapter": digest}[damaged]
    damage(await world.files.path(blob))
    await world.load("hminilm")
    [answer] = await world.answers(world.item(TEXTS[0], digest, version))
    np.testing.assert_array_equal(answer, expected)


async def test_a_blob_gone_from_the_shared_volume_is_asked_of_the_store(
    tmp_path: Path, world: World
) -> None:
    shared = tmp_path / "shared"
    sha256 = world.store.put(b"an adapter")
    path = shared / sha256[:2] / sha256
    path.parent.mkdir(parents=True)
    path.write_bytes(b"an adapter")
    blobs = BlobReader(BlobFiles(BlobCache(tmp_path / "own", Blobs(world.stub)), shared))
    for _ in range(2):
        assert await asyncio.to_thread(blobs.read, sha256) == b"an adapter"
        path.unlink(missing_ok=True)


async def test_a_segment_damaged_in_the_store_fails_who_reads_it_and_nobody_else(
    world: World,
) -> None:
    good, bad = world.tables(keys_of(TEXTS[:1])), world.tables(keys_of(TEXTS))
    store = world.store
    store.blobs[a_segment(world, bad)] = store.blobs[a_segment(world, good)]
    digest = world.adapter(1)
    [event] = (await world.plans([world.item(TEXTS[0], digest, bad)]))[1]
    assert isinstance(event.error, FailedPrecondition)
    [answer] = await world.answers(world.item(TEXTS[0], digest, good))
    assert np.isfinite(answer).all()


async def test_what_is_damaged_on_the_shared_volume_is_asked_of_the_store(
    tmp_path: Path, world: World
) -> None:
    shared = tmp_path / "shared"
    sha256 = world.store.put(b"a segment")
    (shared / sha256[:2]).mkdir(parents=True)
    (shared / sha256[:2] / sha256).write_bytes(b"a segment")
    files = BlobFiles(BlobCache(tmp_path / "own", Blobs(world.stub)), shared)
    path = await files.path(sha256)
    assert path.is_relative_to(shared)
    damage(path)
    files.discard(sha256)
    again = await files.path(sha256)
    assert again.read_bytes() == b"a segment"
    assert not again.is_relative_to(shared)
    # Nor does a process that finds it damaged when it first looks.
    started_later = BlobFiles(BlobCache(tmp_path / "later", Blobs(world.stub)), shared)
    again = await started_later.path(sha256)
    assert again.read_bytes() == b"a segment"
    assert not again.is_relative_to(shared)
