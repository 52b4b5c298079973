"""Loading, lending, sharing and dropping table versions; damage found by digest."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from services.common.errors import (
    Internal,
    NotFound,
    ResourceExhausted,
)
from services.executor.miss_policy import MissPolicy
from services.executor.plot import (
    Manifest,
    loaded,
)
from tests.executor.plot_stores import (
    BIGRAM,
    ENCODER,
    opened,
    refusal,
    root,
    siblings,
    values,
    wait_for,
)
from tests.executor.plot_trees import (
    ROW_SHAPE,
    Blobs,
    Part,
    sha,
    write_version,
)


def test_a_version_loads_beside_who_asks_and_is_lent(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    version = write_version(blobs, [root()])
    with opened(blobs) as store:
        assert store.acquire(version) is None
        table = wait_for(store, version)
        assert store.is_ready(version)
        assert store.acquire(version) is table
        store.release(table)
        store.release(table)
        with pytest.raises(Internal):
            store.release(table)


def test_a_swap_is_a_new_version_and_batches_keep_the_old_one(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    leaf = (ENCODER, [Part(frozenset([BIGRAM]), 5)])
    newer = (ENCODER, [*leaf[1], Part(frozenset([BIGRAM]), 6)])
    with opened(blobs) as store:
        old = wait_for(store, write_version(blobs, [root(), leaf]))
        before = values(old)
        new = wait_for(store, write_version(blobs, [root(), newer]))
        assert not torch.equal(values(new), before)
        assert torch.equal(values(old), before)
        # What did not change exists once.
        assert new.nodes[0] is old.nodes[0]
        assert new.nodes[1].segments[0] is old.nodes[1].segments[0]


def test_held_blobs_are_those_of_loaded_versions_until_they_go(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    version = write_version(blobs, [root()])
    segments = {s.sha256 for s in Manifest.from_bytes(blobs.path(version).read_bytes()).segments}
    with opened(blobs) as store:
        store.prefetch(version)
        assert version in store.held_blobs()
        table = wait_for(store, version)
        assert store.held_blobs() == {version, ENCODER, *segments}
        store.drop_idle(0)
        assert store.versions() == {version}  # a batch uses it
        store.release(table)
        store.drop_idle(3600)
        assert store.versions() == {version}
        store.drop_idle(0)
        assert store.versions() == frozenset()
        assert store.held_blobs() == frozenset()


def test_a_dropped_versions_files_are_unmapped(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    version = write_version(blobs, [root()])
    (segment,) = Manifest.from_bytes(blobs.path(version).read_bytes()).segments
    with opened(blobs) as store:
        table = wait_for(store, version)
        assert segment.sha256 in Path("/proc/self/maps").read_text()
        store.release(table)
        del table
        store.drop_idle(0)
        gc.collect()
        assert segment.sha256 not in Path("/proc/self/maps").read_text()


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    host_bytes=st.sampled_from([400, 1 << 20]),
)
def test_budget_and_eviction_never_change_an_answer(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int], host_bytes: int
) -> None:
    blobs = Blobs(tmp_path_factory.mktemp("blobs"))
    versions = [
        write_version(blobs, [root(), (ENCODER, [Part(frozenset([BIGRAM]), 5 + i)])])
        for i in range(4)
    ]
    with opened(blobs) as reference:
        expected = [values(wait_for(reference, version)) for version in versions]
    with opened(blobs, host_bytes=host_bytes) as store:
        for step in steps:
            table = wait_for(store, versions[step])
            assert torch.equal(values(table), expected[step])
            store.refresh_hot()
            assert torch.equal(values(table), expected[step])
            store.release(table)
            assert host_bytes > 400 or len(store.versions()) <= 2


def test_least_recently_used_versions_go_first_and_those_in_use_stay(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    versions = siblings(blobs, 3)
    with opened(blobs) as store:
        one = wait_for(store, versions[0])
        bytes_of_one = sum(node.size_bytes for node in one.nodes)
    leaf_bytes = one.nodes[1].size_bytes
    with opened(blobs, host_bytes=bytes_of_one + leaf_bytes) as store:
        tables = [wait_for(store, version) for version in versions[:2]]
        third = wait_for(store, versions[2])
        assert store.versions() == set(versions)  # all in use, beyond the budget for a while
        store.release(tables[1])
        assert store.versions() == {versions[0], versions[2]}
        store.release(tables[0])
        store.release(third)
        assert store.versions() == {versions[0], versions[2]}


def test_a_table_that_somebody_waits_for_stays_until_it_was_of_use(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    busy, wanted = siblings(blobs, 2)
    with opened(blobs) as store:
        bytes_of_one = sum(node.size_bytes for node in wait_for(store, busy).nodes)
    with opened(blobs, host_bytes=bytes_of_one) as store:
        tables = [wait_for(store, busy), wait_for(store, busy)]
        assert store.acquire(wanted) is None
        while not store.is_ready(wanted):
            time.sleep(0.001)
        store.release(tables[0])  # a batch ends before those look again who wait
        found = store.acquire(wanted)
        assert found is not None
        store.release(found)
        assert store.versions() == {busy}


def test_a_table_that_nobody_came_for_leaves_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded, "_CLAIM_S", 0.05)
    blobs = Blobs(tmp_path)
    (version,) = siblings(blobs, 1)
    with opened(blobs) as store:
        assert store.acquire(version) is None
        while not store.is_ready(version):
            time.sleep(0.001)
        time.sleep(0.06)
        store.drop_idle(0)
        assert store.versions() == frozenset()


def test_a_store_that_is_closed_leaves_no_figures(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    (version,) = siblings(blobs, 1)
    with opened(blobs, name="left") as store:
        table = wait_for(store, version)
        store.refresh_hot()
        assert b'base="left"' in generate_latest()
    store.release(table)
    assert b'base="left"' not in generate_latest()


def test_a_table_that_can_never_fit_is_refused(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    with opened(blobs, host_bytes=10) as store:
        assert isinstance(refusal(store, write_version(blobs, [root()])), ResourceExhausted)


def test_errors_of_the_source_and_of_ours_reach_who_waits(tmp_path: Path) -> None:
    class Gone(Blobs):
        def path(self, sha256: str) -> Path:
            if sha256 == sha("defect"):
                raise RuntimeError("a defect")
            raise NotFound("there is no such blob")

    with opened(Gone(tmp_path)) as store:
        assert isinstance(refusal(store, sha("gone")), NotFound)
        assert isinstance(refusal(store, sha("defect")), Internal)


def test_under_compute_the_leafs_encoder_comes_with_the_table(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    version = write_version(blobs, [(ENCODER, [])], MissPolicy.COMPUTE)
    with opened(blobs) as store:
        table = wait_for(store, version)
        assert table.encoder is not None
        assert values(table).shape == (2, *ROW_SHAPE)


def test_a_slow_load_delays_nobody_else(tmp_path: Path) -> None:
    blocked = threading.Event()
    slow_version: list[str] = []

    class Slow(Blobs):
        def path(self, sha256: str) -> Path:
            if sha256 in slow_version:
                blocked.wait(20)
            return super().path(sha256)

    blobs = Slow(tmp_path)
    quick = write_version(blobs, [root()])
    slow = write_version(blobs, [root(), root()])
    slow_version.append(slow)
    with opened(blobs) as store:
        store.prefetch(slow)
        wait_for(store, quick)
        assert not store.is_ready(slow)
        blocked.set()
        wait_for(store, slow)


def test_readers_on_many_threads_see_right_rows_while_versions_come_and_go(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    versions = [
        write_version(blobs, [root(), (ENCODER, [Part(frozenset([BIGRAM]), 5 + i)])])
        for i in range(4)
    ]
    with opened(blobs) as store:
        expected = [values(wait_for(store, version)) for version in versions]
    wrong: list[int] = []

    def read(seed: int) -> None:
        chance = np.random.default_rng(seed)
        for _ in range(40):
            step = int(chance.integers(4))
            table = wait_for(store, versions[step])
            if not torch.equal(values(table), expected[step]):
                wrong.append(step)
            store.release(table)
            if chance.random() < 0.2:
                store.refresh_hot()

    with opened(blobs, host_bytes=400) as store:
        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
