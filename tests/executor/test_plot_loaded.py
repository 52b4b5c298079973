"""What is kept of loaded tables costs no walk over their nodes, and its sums stay right."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import Internal
from services.executor.miss_policy import MissPolicy
from services.executor.plot import (
    HotTier,
    Manifest,
    NodeRef,
    SegmentRef,
    Table,
    TableStore,
)
from services.executor.plot.coalesce import Coalesced
from services.executor.plot.loaded import LoadedTables
from services.executor.plot.node import NodeTable
from services.executor.plot.segment import Segment
from tests.executor.plot_stores import CPU, ENCODER, opened, siblings, wait_for
from tests.executor.plot_trees import (
    BASE,
    ROW_SHAPE,
    Blobs,
    FakeEncoder,
    new_loader,
    rows_of,
    sha,
)

MANIFEST = Manifest(BASE, MissPolicy.BACKOFF, (NodeRef("", 1, ENCODER, ()),))


def some_node(num_rows: int) -> NodeTable:
    keys = np.arange(1, num_rows + 1, dtype=np.int64) << 21
    ref = SegmentRef(sha(str(num_rows)), 1, num_rows, 0, is_removal=False)
    return NodeTable(ENCODER, [Segment(ref, keys, rows_of(keys, 1))], ROW_SHAPE)


NODES = [some_node(num_rows) for num_rows in (3, 40, 500)]
TABLES = [
    Table(sha(str(number)), MANIFEST, path)
    for number, path in enumerate(
        [(NODES[0],), (NODES[0], NODES[1]), (NODES[0], NODES[1], NODES[1]), (NODES[2],)]
    )
]


def test_a_release_looks_at_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = Blobs(tmp_path)
    versions = siblings(blobs, 8)
    with opened(blobs) as store:
        tables = [wait_for(store, version) for version in versions]
        store.refresh_hot()
        looks: list[NodeTable] = []

        def look(node: NodeTable) -> int:
            looks.append(node)
            return 0

        monkeypatch.setattr(NodeTable, "__len__", look)
        monkeypatch.setattr(NodeTable, "size_bytes", property(look))
        for table in tables:
            store.release(table)
        assert not looks


def test_loads_that_come_together_have_hot_rows_chosen_once(tmp_path: Path) -> None:
    class SlowTier(HotTier):
        num_choices = 0

        def choose(self, nodes: Sequence[NodeTable]) -> None:
            self.num_choices += 1
            super().choose(nodes)
            time.sleep(0.05)

    blobs = Blobs(tmp_path)
    versions = siblings(blobs, 20)
    tier = SlowTier(1 << 12, CPU)
    loader = new_loader(blobs, {ENCODER: FakeEncoder(3)})
    store = TableStore(loader, host_bytes=1 << 20, tier=tier)
    try:
        for version in versions:
            wait_for(store, version)
        assert tier.num_choices < 5
    finally:
        store.close()


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(["add", "lend", "give", "drop"]), st.integers(0, 3)))
)
def test_sums_are_those_of_the_nodes_whatever_comes_and_goes(steps: list[tuple[str, int]]) -> None:
    loaded = LoadedTables()
    users = [0] * len(TABLES)
    idle: list[str] = []
    for step, number in steps:
        table = TABLES[number]
        is_there = table.version in loaded
        if step == "add" and not is_there:
            loaded.add(table, is_claimed=False)
            idle.append(table.version)
        elif step == "lend":
            assert (loaded.lend(table.version) is table) == is_there
            users[number] += is_there
            idle = [version for version in idle if version != table.version]
        elif step == "give" and users[number]:
            loaded.take_back(table)
            users[number] -= 1
            idle += [] if users[number] else [table.version]
        elif step == "give":
            with pytest.raises(Internal):
                loaded.take_back(table)
        elif step == "drop":
            assert loaded.drop(table.version) == (is_there and not users[number])
            idle = [version for version in idle if version != table.version]
        nodes = {node for table in loaded for node in table.nodes}
        assert set(loaded.nodes) == nodes
        assert loaded.size_bytes == sum(node.size_bytes for node in nodes)
        assert loaded.num_rows == sum(map(len, nodes))
        longest = loaded.longest_idle()
        assert (longest and longest[0]) == (idle[0] if idle else None)


def test_work_asked_for_while_it_is_done_is_done_once_more_and_outlives_errors() -> None:
    begun, may_end = threading.Semaphore(0), threading.Semaphore(0)
    num_runs = 0

    def work() -> None:
        nonlocal num_runs
        num_runs += 1
        begun.release()
        assert may_end.acquire(timeout=10)
        if num_runs == 1:
            raise RuntimeError("of the device")

    coalesced = Coalesced(work, "test")
    coalesced.ask()
    assert begun.acquire(timeout=10)
    for _ in range(50):
        coalesced.ask()
    may_end.release()
    assert begun.acquire(timeout=10)
    may_end.release()
    coalesced.close()
    coalesced.ask()
    assert num_runs == 2


def test_work_that_nobody_asked_for_is_never_begun() -> None:
    coalesced = Coalesced(lambda: pytest.fail("nobody asked"), "test")
    coalesced.close()
    coalesced.ask()
