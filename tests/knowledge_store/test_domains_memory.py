"""Planning holds the counts of one node at a time, and comes to the same as with all of them."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.sorted_keys import NONE
from services.knowledge_store.domains import sources
from services.knowledge_store.domains.sources import CountsInTurn, OwnCounts, node_counts
from services.knowledge_store.tree import ChangeRules, Node, NodeCounts, Source, plan_tree
from tests.knowledge_store.domain_worlds import key

PATHS = ("", "news", "news/sport", "news/money", "film")
RULES = ChangeRules(min_tenants=1)


def own_counts(path: str, seed: int) -> OwnCounts:
    rng = np.random.default_rng(seed)
    drawn = rng.integers(1, 8, (200, 3)).tolist()
    keys, counts = np.unique([key(*ids) for ids in drawn], return_counts=True)
    totals = np.array([0.0, 0.0, float(counts.sum())])
    corpus = Source("", keys.astype(np.int64), counts.astype(np.float64), totals)
    return OwnCounts(rpb.Domain(path=path), (corpus,), ())


def test_one_nodes_counts_are_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [own_counts(path, seed) for seed, path in enumerate(PATHS)]
    domains = {counts.node.path: counts.node for counts in own}
    nodes = [Node(path, "encoder", 0.5, 40, NONE, is_bounded=False) for path in PATHS]
    together = {path: node_counts(node, own, (), 1) for path, node in domains.items()}
    expected = plan_tree(nodes, together, RULES)
    made: list[weakref.ref[NodeCounts]] = []

    def make(*args: object) -> NodeCounts:
        assert not any(counts() for counts in made)
        counts = node_counts(*args)  # type: ignore[arg-type]
        made.append(weakref.ref(counts))
        return counts

    monkeypatch.setattr(sources, "node_counts", make)
    plans = plan_tree(nodes, CountsInTurn(domains, own, (), 1), RULES)
    # Each on the way up and on the way down, but for the root, which is last and first.
    assert len(made) == 2 * len(PATHS) - 1
    assert plans.keys() == expected.keys()
    for path, plan in plans.items():
        np.testing.assert_array_equal(plan.rows, expected[path].rows)
        assert plan.changes == expected[path].changes
    assert any(len(plan.rows) for plan in plans.values())
