"""Which rows lie near: those asked for most, wherever the asking is counted."""

from __future__ import annotations

from pathlib import Path

from services.executor.plot import HotTier, Retriever, RowCaches, RowSource, Table
from tests.executor.plot_stores import CPU, ENCODER
from tests.executor.plot_trees import (
    ROW_SHAPE,
    VOCAB,
    Blobs,
    Part,
    new_loader,
    unigrams,
    write_version,
)


def load(blobs: Blobs, parts: list[Part]) -> Table:
    version = write_version(blobs, [(ENCODER, parts)])
    loader = new_loader(blobs)
    return loader.table(version, loader.manifest(version))


def new_retriever() -> Retriever:
    return Retriever(ROW_SHAPE, CPU, RowCaches(ROW_SHAPE, total_bytes=0, tenant_bytes=0))


def test_rows_that_are_used_become_hot(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    trigrams = frozenset(1 << 42 | centre << 21 | 1 for centre in range(1, VOCAB + 1))
    table = load(blobs, [unigrams(1), Part(trigrams, 2)])
    node = table.nodes[0]
    tier = HotTier(2 * (node.row_bytes + 12), CPU)
    retriever = new_retriever()

    def hot_keys() -> set[int]:
        found, numbers = node.entries()
        return {int(key) for key, n in zip(found, numbers, strict=True) if node.hot.slots[n] >= 0}

    tier.choose([node])
    assert hot_keys() == {1 << 21, 2 << 21}  # unused rows: short n-grams first
    sources = [RowSource(table, "acme")]
    for _ in range(3):
        retriever.retrieve([0, 4, 0], [3], sources)
    tier.choose([node])
    assert 1 << 42 | 5 << 21 | 1 in hot_keys()
    assert len(hot_keys()) == 2


def test_a_node_on_the_device_stays_there_while_it_is_asked_more_than_others(
    tmp_path: Path,
) -> None:
    blobs = Blobs(tmp_path)
    often = load(blobs, [unigrams(1)])
    seldom = load(blobs, [unigrams(2)])
    nodes = [seldom.nodes[0], often.nodes[0]]
    tier = HotTier(len(nodes[0]) * (nodes[0].row_bytes + 12), CPU, keeps_keys=True)
    retriever = new_retriever()
    every_token = list(range(VOCAB))

    def ask(table: Table, num_times: int) -> None:
        sources = [RowSource(table, "acme")] * VOCAB * num_times
        retriever.retrieve(every_token * num_times, [1] * len(sources), sources)

    tier.choose(nodes)
    copies = set()
    for _ in range(12):
        ask(often, 100)
        ask(seldom, 1)
        tier.choose(nodes)
        assert often.on_device() is not None
        assert seldom.on_device() is None
        copies.add(id(often.nodes[0].hot))
    assert len(copies) == 1  # and is not copied anew
    for _ in range(12):
        ask(seldom, 1)
        tier.choose(nodes)
    assert seldom.on_device() is not None  # what nobody asks for leaves
