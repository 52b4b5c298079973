"""The sharing rules: who may raise a shared node's counts, and by how much."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.knowledge_store.tree import Source, combine
from services.knowledge_store.tree.selection import cover
from tests.knowledge_store import tree_oracle
from tests.knowledge_store.domain_worlds import key

KEYS = sorted([key(a, b, c) for a in (0, 1, 2) for b in (1, 2) for c in (0, 1, 2)])


def source(tenant: str, counts: dict[int, float], unnamed: float = 0.0) -> Source:
    keys = np.array(sorted(counts), np.int64)
    weights = np.array([counts[int(k)] for k in keys], np.float64)
    totals = np.array(
        [sum(w for k, w in counts.items() if tree_oracle.order(k) == o) for o in (1, 2, 3)]
    )
    return Source(tenant, keys, weights, totals + unnamed)


@st.composite
def sources(draw: st.DrawFn) -> list[Source]:
    some = st.dictionaries(
        st.sampled_from(KEYS), st.integers(1, 40).map(lambda n: n / 4), max_size=8
    )
    tenants = draw(st.lists(st.sampled_from(["", "a", "b", "c", "d"]), max_size=7))
    return [source(t, draw(some), draw(st.integers(0, 20))) for t in tenants]


@settings(max_examples=80, deadline=None)
@given(sources(), st.integers(1, 4))
def test_a_shared_nodes_counts_are_those_of_the_rules_by_brute_force(
    given_sources: list[Source], m: int
) -> None:
    counts = combine(given_sources, is_private=False, min_tenants=m)
    told, totals = tree_oracle.combined(given_sources, m)
    assert counts.keys.tolist() == sorted(told)
    expected = [told[k] for k in counts.keys.tolist()]
    assert counts.weights.tolist() == pytest.approx([t.weight for t in expected], abs=1e-7)
    assert counts.is_repeated.tolist() == [t.is_repeated for t in expected]
    assert counts.is_exempt.tolist() == [t.is_exempt for t in expected]
    assert counts.may_enter.tolist() == [t.may_enter for t in expected]
    assert counts.totals.tolist() == pytest.approx(totals, abs=1e-7)
    assert counts.orders.tolist() == [tree_oracle.order(k) for k in counts.keys.tolist()]


@settings(max_examples=40, deadline=None)
@given(sources())
def test_a_private_node_takes_its_tenants_counts_as_they_are(given_sources: list[Source]) -> None:
    counts = combine(given_sources, is_private=True, min_tenants=3)
    total: dict[int, float] = {}
    for one in given_sources:
        for k, weight in tree_oracle.by_key(one).items():
            total[k] = total.get(k, 0.0) + weight
    assert dict(zip(counts.keys.tolist(), counts.weights.tolist(), strict=True)) == total
    assert counts.may_enter.all()


@settings(max_examples=150, deadline=None)
@given(sources(), st.integers(2, 4), st.sampled_from("abcd"))
def test_nobody_gives_more_than_its_share_of_the_whole_however_much_it_sends(
    given_sources: list[Source], m: int, flooder: str
) -> None:
    flood = [
        Source(one.tenant, one.keys, one.weights * 1e6, one.totals * 1e6)
        if one.tenant == flooder else one
        for one in given_sources
    ]  # fmt: skip
    counts = combine(flood, is_private=False, min_tenants=m)
    others = sum(one.totals.sum() for one in given_sources if one.tenant != flooder)
    # At most 1/m of it is the flooder's. (It grew by 10^6: so does what is lost by rounding.)
    assert counts.totals.sum() <= others * m / (m - 1) + 1e-3
    assert (counts.weights[~counts.may_enter] == 0).all()


def test_what_two_tenants_sent_does_not_enter_and_what_three_sent_does() -> None:
    secret, common = key(1, 1, 1), key(2, 2, 2)
    traffic = [source(t, {common: 5.0} | ({secret: 90.0} if t in "ab" else {})) for t in "abc"]
    counts = combine(traffic, is_private=False, min_tenants=3)
    assert cover(counts, 3, 1.0).tolist() == [common]
    corpus = source("", {secret: 2.0})
    counts = combine([*traffic, corpus], is_private=False, min_tenants=3)
    assert cover(counts, 3, 1.0).tolist() == [secret, common]


def test_a_tenant_that_sends_twenty_times_as_much_moves_no_weight_beyond_a_third() -> None:
    others = [source(t, {key(1, 1, n): 10.0 for n in (1, 2, 3)}) for t in "abcdef"]
    flood = source("z", {key(1, 1, 3): 3_000.0, key(2, 2, 2): 3_000.0})
    quiet = combine(others, is_private=False, min_tenants=3)
    flooded = combine([*others, flood], is_private=False, min_tenants=3)
    assert cover(quiet, 3, 0.5).tolist() == [key(1, 1, 1), key(1, 1, 2)]
    assert key(2, 2, 2) not in cover(flooded, 3, 1.0).tolist()
    before = dict(zip(quiet.keys.tolist(), quiet.weights.tolist(), strict=True))
    after = dict(zip(flooded.keys.tolist(), flooded.weights.tolist(), strict=True))
    assert after[key(1, 1, 3)] <= before[key(1, 1, 3)] + 10.0


@settings(max_examples=60, deadline=None)
@given(sources(), st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]), st.integers(1, 3))
def test_the_selection_is_the_smallest_that_covers_by_brute_force(
    given_sources: list[Source], alpha: float, order: int
) -> None:
    counts = combine(given_sources, is_private=False, min_tenants=2)
    taken = cover(counts, order, alpha)
    assert taken.tolist() == sorted(tree_oracle.covering(counts, order, alpha))


def test_what_came_once_is_never_taken_unless_everything_is() -> None:
    corpus = source("", {key(1, 1, n): 1.0 for n in range(1, 9)} | {key(2, 2, 2): 2.0})
    counts = combine([corpus], is_private=False, min_tenants=3)
    assert cover(counts, 3, 0.99).tolist() == [key(2, 2, 2)]
    assert len(cover(counts, 3, 1.0)) == 9
