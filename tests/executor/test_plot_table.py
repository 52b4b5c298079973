"""What a table version answers, against brute force on random trees."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.miss_policy import MissPolicy
from services.executor.plot import (
    HotTier,
    Result,
    Retriever,
    RowCaches,
    RowSource,
    Table,
    lookup,
)
from tests.executor.plot_trees import (
    ROW_SHAPE,
    VOCAB,
    Blobs,
    FakeEncoder,
    Part,
    brute_force,
    new_loader,
    rows_of,
    sha,
    unigrams,
    write_version,
)

ENCODERS = [sha("root's"), sha("adapted")]
CPU = torch.device("cpu")

slot = st.integers(0, VOCAB)
keys = st.builds(
    lambda left, centre, right: left << 42 | centre << 21 | right,
    slot,
    st.integers(1, VOCAB),
    slot,
)
parts = st.lists(
    st.builds(Part, st.frozensets(keys, max_size=12), st.none() | st.integers(2, 9)), max_size=3
)
nodes = st.lists(st.tuples(st.sampled_from(ENCODERS), parts), min_size=1, max_size=4)
texts = st.lists(
    st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8), min_size=1, max_size=4
)
tokens = st.integers(0, VOCAB - 1)
policies = st.sampled_from(list(MissPolicy))


def whole(tree: list[tuple[str, list[Part]]]) -> list[tuple[str, list[Part]]]:
    """The root answers for every token whatever else it lost."""
    (encoder, root), *rest = tree
    return [(encoder, [*root, unigrams()]), *rest]


def flat(rows: list[list[int]]) -> tuple[list[int], list[int]]:
    return [token for row in rows for token in row], [len(row) for row in rows]


def slots_of(rows: list[list[int]]) -> list[tuple[int, int, int]]:
    found = []
    for row in rows:
        padded = [0, *[token + 1 for token in row], 0]
        found += list(zip(padded, padded[1:], padded[2:], strict=False))
    return found


def new_caches() -> RowCaches:
    return RowCaches(ROW_SHAPE, total_bytes=1 << 16, tenant_bytes=1 << 12)


@pytest.mark.parametrize("hot_bytes", [0, 200, 1 << 20])
@pytest.mark.parametrize("is_staged", [False, True])
@settings(max_examples=12, deadline=None)
@given(tree=nodes.map(whole), rows=texts, policy=policies)
def test_every_token_gets_what_brute_force_finds_from_whatever_tier(
    hot_bytes: int,
    is_staged: bool,
    tree: list[tuple[str, list[Part]]],
    rows: list[list[int]],
    policy: MissPolicy,
) -> None:
    encoders = {encoder: FakeEncoder(100 + i) for i, encoder in enumerate(ENCODERS)}
    with tempfile.TemporaryDirectory() as directory:
        blobs = Blobs(Path(directory))
        version = write_version(blobs, tree, policy)
        loader = new_loader(blobs, encoders)
        table = loader.table(version, loader.manifest(version))
        HotTier(hot_bytes, CPU, keeps_keys=is_staged).choose(list(dict.fromkeys(table.nodes)))
        retriever = Retriever(ROW_SHAPE, CPU, new_caches(), is_staged=is_staged)
        got = retriever.retrieve(*flat(rows), [RowSource(table, "acme")] * len(rows))
    leaf = encoders[tree[-1][0]]
    for place, token_slots in enumerate(slots_of(rows)):
        expected = brute_force(tree, token_slots, policy)
        left, centre, right = token_slots
        if expected is None:
            key = torch.tensor([left << 42 | centre << 21 | right])
            assert got.results[place] == Result.COMPUTED
            assert torch.equal(got.values[place], leaf.rows(key)[0])
        else:
            assert got.results[place] == expected.order
            assert (got.values[place].numpy() == expected.values).all()


@settings(max_examples=15, deadline=None)
@given(tree=nodes.map(whole), rows=texts)
def test_on_the_device_a_whole_table_answers_as_on_the_host(
    tree: list[tuple[str, list[Part]]], rows: list[list[int]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        blobs = Blobs(Path(directory))
        version = write_version(blobs, tree)
        loader = new_loader(blobs)
        table = loader.table(version, loader.manifest(version))
        retriever = Retriever(ROW_SHAPE, CPU, new_caches())
        sources = [RowSource(table, "acme")] * len(rows)
        on_host = retriever.retrieve(*flat(rows), sources)
        assert table.on_device() is None
        HotTier(1 << 20, CPU, keeps_keys=True).choose(list(dict.fromkeys(table.nodes)))
        assert table.on_device() is not None
        on_device = retriever.retrieve(*flat(rows), sources)
    assert torch.equal(on_host.values, on_device.values)
    assert torch.equal(on_host.results, on_device.results)


def load(blobs: Blobs, version: str, encoders: dict[str, FakeEncoder] | None = None) -> Table:
    loader = new_loader(blobs, encoders)
    return loader.table(version, loader.manifest(version))


def compute_table(blobs: Blobs, encoder: FakeEncoder, held: frozenset[int]) -> Table:
    tree = [(ENCODERS[0], [Part(held, encoder.seed)])]
    return load(blobs, write_version(blobs, tree, MissPolicy.COMPUTE), {ENCODERS[0]: encoder})


@given(data=st.data(), rows=texts)
@settings(max_examples=15, deadline=None)
def test_under_compute_full_partial_and_empty_tables_give_the_same_rows(
    data: st.DataObject, rows: list[list[int]]
) -> None:
    every = [left << 42 | centre << 21 | right for left, centre, right in slots_of(rows)]
    some = data.draw(st.frozensets(st.sampled_from(every)))
    values = []
    with tempfile.TemporaryDirectory() as directory:
        for held in (frozenset(every), some, frozenset[int]()):
            table = compute_table(Blobs(Path(directory)), FakeEncoder(3), held)
            retriever = Retriever(ROW_SHAPE, CPU, new_caches())
            sources = [RowSource(table, "acme")] * len(rows)
            values.append(retriever.retrieve(*flat(rows), sources).values)
            values.append(retriever.retrieve(*flat(rows), sources).values)
    for other in values[1:]:
        assert torch.equal(values[0], other)


def test_a_batch_computes_each_missing_ngram_once_and_never_again_for_that_tenant(
    tmp_path: Path,
) -> None:
    encoder = FakeEncoder(3)
    table = compute_table(Blobs(tmp_path), encoder, frozenset())
    retriever = Retriever(ROW_SHAPE, CPU, new_caches())
    acme, beta = RowSource(table, "acme"), RowSource(table, "beta")

    first = retriever.retrieve([1, 2, 1, 2, 1, 2], [2, 2, 2], [acme, acme, beta])
    assert [len(asked) for asked in encoder.asked] == [2]
    assert (first.num_missing, first.num_computed) == (6, 2)
    again = retriever.retrieve([1, 2, 1, 2], [2, 2], [acme, beta])
    assert again.num_computed == 0
    assert torch.equal(again.values, first.values[:4])

    # What beta's requests computed is not found by acme's.
    retriever.retrieve([5], [1], [beta])
    assert retriever.retrieve([5], [1], [acme]).num_computed == 1


def test_rows_of_a_batch_read_their_own_tables(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    root = (ENCODERS[0], [unigrams(1)])
    bigram = 2 << 42 | 3 << 21
    plain = load(blobs, write_version(blobs, [root]))
    news = load(blobs, write_version(blobs, [root, (ENCODERS[0], [Part(frozenset([bigram]), 7)])]))
    encoder = FakeEncoder(3)
    empty = compute_table(blobs, encoder, frozenset())
    retriever = Retriever(ROW_SHAPE, CPU, new_caches())

    sources = [RowSource(table, "acme") for table in (plain, news, empty, news)]
    got = retriever.retrieve([1, 2] * 4, [2] * 4, sources)
    assert got.results.tolist() == [1, 1, 1, 2, 0, 0, 1, 2]
    for row, source in enumerate(sources):
        alone = retriever.retrieve([1, 2], [2], [source])
        assert torch.equal(got.values[2 * row : 2 * row + 2], alone.values)


@settings(max_examples=25, deadline=None)
@given(
    trees=st.lists(st.tuples(nodes.map(whole), policies), min_size=2, max_size=4),
    rows=st.lists(
        st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=8), min_size=4, max_size=8
    ),
    is_small=st.booleans(),
)
def test_in_a_batch_of_many_tables_every_token_gets_what_brute_force_finds_in_its_own(
    trees: list[tuple[list[tuple[str, list[Part]]], MissPolicy]],
    rows: list[list[int]],
    is_small: bool,
) -> None:
    encoders = {encoder: FakeEncoder(100 + i) for i, encoder in enumerate(ENCODERS)}
    with tempfile.TemporaryDirectory() as directory:
        blobs = Blobs(Path(directory))
        loader = new_loader(blobs, encoders)
        versions = [write_version(blobs, tree, policy) for tree, policy in trees]
        tables = [loader.table(version, loader.manifest(version)) for version in versions]
        sources = [RowSource(tables[i % len(tables)], "acme") for i in range(len(rows))]
        retriever = Retriever(ROW_SHAPE, CPU, new_caches())
        with patch.object(lookup, "_SMALL", lookup._SMALL if is_small else 0):
            got = retriever.retrieve(*flat(rows), sources)
    place = 0
    for number, row in enumerate(rows):
        tree, policy = trees[number % len(trees)]
        for left, centre, right in slots_of([row]):
            expected = brute_force(tree, (left, centre, right), policy)
            key = np.array([left << 42 | centre << 21 | right])
            values = encoders[tree[-1][0]].rows(torch.from_numpy(key))[0].numpy()
            assert got.results[place] == (0 if expected is None else expected.order)
            assert (
                got.values[place].numpy() == (values if expected is None else expected.values)
            ).all()
            place += 1


def test_an_empty_batch_has_no_rows(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    table = load(blobs, write_version(blobs, [(ENCODERS[0], [unigrams()])]))
    retriever = Retriever(ROW_SHAPE, CPU, new_caches())
    got = retriever.retrieve([], [0], [RowSource(table, "acme")])
    assert got.values.shape == (0, *ROW_SHAPE)
    assert np.array_equal(got.results, [])


def test_a_node_that_is_on_a_path_twice_counts_where_it_is_met_first(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    bigram = frozenset([2 << 42 | 3 << 21])
    outer = (ENCODERS[0], [unigrams(1), Part(bigram, 7)])
    table = load(blobs, write_version(blobs, [outer, (ENCODERS[0], [Part(bigram, 8)]), outer]))
    other = load(blobs, write_version(blobs, [(ENCODERS[0], [unigrams(2)])]))
    retriever = Retriever(ROW_SHAPE, CPU, new_caches())
    sources = [RowSource(table, "acme"), RowSource(other, "acme")]
    got = retriever.retrieve([1, 2, 1, 2], [2, 2], sources)
    expected = rows_of(np.array(sorted(bigram)), 7)[0]
    assert (got.values[1].numpy() == expected).all()
