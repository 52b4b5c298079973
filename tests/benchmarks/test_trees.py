"""The tree benchmark's parts: lookups against the executor's tables, choices, updates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.trees import foresight, lookups, tables, texts
from benchmarks.trees.lookups import answering_orders, look_up
from benchmarks.trees.sharing import Domain, Sent, rounds, shared_counts
from benchmarks.trees.texts import ROOT, Text, Traffic
from benchmarks.trees.world import Fold
from services.common import ngrams
from services.common.ngrams import order_of
from tests.executor.plot_trees import VOCAB, Blobs, Part, new_loader, unigrams, write_version

slots = st.tuples(st.integers(0, VOCAB), st.integers(1, VOCAB), st.integers(0, VOCAB))
WORDS = 40


def write_texts(path: str, number: int, first: int, seed: int) -> list[Text]:
    """Texts whose tokens are drawn, steeply, from 20 ids beginning at `first`."""
    chance = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        ids = first + np.minimum(chance.geometric(0.2, 30), 20)
        made.append(Text(path, ngrams.keys_of(ids, [30])))
    return made


def all_unigrams() -> np.ndarray:
    return ngrams.pack(0, np.arange(1, 2 * WORDS), 0)


@settings(deadline=None, max_examples=25)
@given(st.lists(slots, max_size=30), st.lists(slots, min_size=1, max_size=20))
def test_lookups_answer_as_the_executors_tables_do(
    tmp_path_factory: pytest.TempPathFactory,
    held: list[tuple[int, int, int]],
    asked: list[tuple[int, int, int]],
) -> None:
    blobs = Blobs(tmp_path_factory.mktemp("tables"))
    leaf = Part(frozenset(int(ngrams.pack(*some)) for some in held), 1)
    version = write_version(blobs, [("aa" * 32, [unigrams()]), ("aa" * 32, [leaf])])
    loader = new_loader(blobs)
    table = loader.table(version, loader.manifest(version))
    keys = np.array([int(ngrams.pack(*some)) for some in asked], np.int64)
    rows = np.array(sorted(leaf.keys | unigrams().keys), np.int64)
    assert answering_orders(keys, rows).tolist() == table.find(keys).results.tolist()


def test_each_text_is_looked_up_along_its_own_path() -> None:
    own, other = ngrams.pack([1], [2], [3]), ngrams.pack([4], [2], [3])
    held = {
        ROOT: ngrams.pack([0], [2], [0]),
        "a": own,
        "a/b": other,
        "c": ngrams.pack([0], [2], [3]),
    }
    keys = np.concatenate([own, other])
    hits = look_up([Text("a/b", keys), Text("a", keys), Text("c", keys), Text("d", keys)], held)
    assert hits.by_order.tolist() == [[0, 0, 0, 2], [0, 1, 0, 1], [0, 0, 2, 0], [0, 2, 0, 0]]
    assert hits.share(3) == pytest.approx(3 / 8)
    below = look_up([Text("a/b", keys), Text("a", keys), Text("d", keys)], held, beside=held[ROOT])
    assert below.by_order.tolist() == [[0, 0, 0, 2], [1, 0, 0, 1], [2, 0, 0, 0]]
    assert below.share(3) == pytest.approx(3 / 6)


def world() -> tuple[list[Text], list[str]]:
    made = write_texts("a/x", 60, 1, 0) + write_texts("a/y", 60, 10, 1)
    return made, texts.paths(made)


def test_equal_sets_are_equally_large_and_the_oracle_is_the_best() -> None:
    made, nodes = world()
    counts = texts.corpus_counts(made, nodes)
    held_out = write_texts("a/x", 30, 1, 2) + write_texts("a/y", 30, 10, 3)
    chosen = tables.selected(nodes, counts, all_unigrams(), tables.Choice(0.4))
    seen = texts.corpus_counts(held_out, nodes)
    oracle = tables.as_large(chosen, tables.storable(counts, 0.4), tables.counted(seen))
    everything = {path: c.keys for path, c in counts.items()}
    chance = tables.as_large(chosen, everything, tables.drawn(seed=0))
    for other in (oracle, chance):
        for path, rows in chosen.items():
            sizes = [np.bincount(order_of(some), minlength=4).tolist()
                     for some in (rows, other[path])]  # fmt: skip
            assert sizes[0] == sizes[1]
    shares = [look_up(held_out, some).share(3) for some in (oracle, chosen, chance)]
    assert shares[0] >= shares[1] > shares[2]
    assert len(lookups.path_rows("a/x", chosen)) == sum(
        len(chosen[path]) for path in (ROOT, "a", "a/x")
    )


def counted_fold(counted: list[Text], held_out: list[Text], nodes: list[str]) -> Fold:
    return Fold(
        Traffic(counted, held_out),
        texts.corpus_counts(counted, nodes),
        texts.corpus_counts(held_out, nodes),
    )


def test_of_equal_counts_the_smoothed_rule_prefers_what_sibling_domains_sent() -> None:
    shared, alone = [70, 71, 72], [80, 81, 82]
    made, _ = world()
    made += [Text("a/x", ngrams.keys_of([*shared, *alone] * 2, [12]))]
    made += [Text("a/y", ngrams.keys_of(shared * 5, [15]))]
    counts = texts.corpus_counts(made, texts.paths(made))
    keys = np.sort(ngrams.pack([71, 81], [72, 82], [73, 83]))
    assert len(set(tables.counted(counts)("a/x", keys))) == 1
    worth = foresight.smoothed(counts)("a/x", keys)
    assert worth[0] > worth[1]


def test_the_fitted_rule_knows_from_another_fold_how_often_what_was_counted_comes_again() -> None:
    made, nodes = world()
    held_out = write_texts("a/x", 60, 1, 5) + write_texts("a/y", 60, 10, 6)
    folds = [counted_fold(made[part::2], held_out, nodes) for part in (0, 1)]
    worth = foresight.fitted(*folds)
    keys, weights = folds[0].counts["a/x"].keys, folds[0].counts["a/x"].weights
    is_trigram = order_of(keys) == 3
    expected, counts = worth("a/x", keys[is_trigram]), weights[is_trigram]
    assert expected[counts == counts.max()].mean() > expected[counts == counts.min()].mean() > 0


def test_sharing_needs_three_tenants_for_what_a_corpus_may_hold_alone() -> None:
    made, nodes = world()
    rare = Text("a/x", ngrams.keys_of([70, 71, 72, 70, 71, 72], [6]))
    corpus = texts.corpus_counts([*made, rare], nodes)["a/x"]
    shared = shared_counts([*made, rare], nodes, min_tenants=3)["a/x"]
    key = ngrams.pack([71], [72], [73])
    assert corpus.may_enter[np.searchsorted(corpus.keys, key)].all()
    assert not shared.may_enter[np.searchsorted(shared.keys, key)].any()


def test_traffic_that_moves_is_followed_within_the_bound_on_changes() -> None:
    domain = Domain("news", all_unigrams(), half_life_tokens=2_000, alpha=0.4)
    for round_ in rounds(write_texts("news", 200, 1, 0), 5, 600):
        domain.observe(round_)
    domain.update(is_first=True)
    held_out = write_texts("news", 50, 40, 5)
    before, changes = domain.hits(held_out).share(2), []
    for round_ in rounds(write_texts("news", 800, 40, 1), 5, 600):
        domain.observe(round_)
        changes.append(domain.update())
    assert domain.hits(held_out).share(2) > before + 0.3
    assert max(changes) <= 0.05 + 1e-9


def test_a_flooding_tenant_does_not_displace_what_others_send() -> None:
    quiet, flooded = (Domain("news", all_unigrams(), 10_000, alpha=0.4) for _ in range(2))
    flood = write_texts("news", 100, 40, 9)
    for round_ in rounds(write_texts("news", 200, 1, 0), 5, 600):
        quiet.observe(round_)
        flooded.observe([*round_, Sent("flood", flood, 20.0)])
    quiet.update(is_first=True)
    flooded.max_rows = len(quiet.rows)
    flooded.update(is_first=True)
    held_out = write_texts("news", 50, 1, 5)
    assert flooded.hits(held_out).share(2) >= quiet.hits(held_out).share(2) - 0.02


def test_a_tree_names_every_node_above_its_domains(tmp_path: Path) -> None:
    assert texts.paths([Text("a/x/y", all_unigrams())]) == ["", "a", "a/x", "a/x/y"]
    assert texts.is_within("a/x", "a")
    assert not texts.is_within("ab", "a")
