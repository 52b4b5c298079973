"""Drift and floods over many updates: counts, sharing rules and bounded changes together."""

from __future__ import annotations

import numpy as np

from services.common.ngrams import order_of
from services.common.sorted_keys import NONE, IntArray, contains
from services.knowledge_store.domains.sources import traffic_source
from services.knowledge_store.frequency import Frequencies, Observation, Stream
from services.knowledge_store.tree import ChangeRules, Node, combine, plan_tree

HALF_LIFE = 20_000.0
TENANTS = [f"t{n}" for n in range(8)]
RULES = ChangeRules()
NUM_NGRAMS = 1_000


class Domain:
    """One shared domain under an empty root, fed and updated."""

    def __init__(self) -> None:
        self.frequencies = Frequencies(max_keys=1 << 14, max_total_keys=1 << 20)
        self.rows: IntArray = NONE
        self._sequence = 0

    def send(self, tenant: str, keys: IntArray) -> None:
        self._sequence += 1
        distinct, counts = np.unique(keys, return_counts=True)
        observation = Observation(
            Stream("b", "d", tenant), distinct, counts.astype(np.float64), len(keys), HALF_LIFE,
            (0, 0, 0, 0, 0),
        )  # fmt: skip
        self.frequencies.observe("e", 1, self._sequence, [observation])

    def update(self, rules: ChangeRules = RULES) -> None:
        sketches = self.frequencies.sketches("b", {"d": HALF_LIFE})
        sources = [traffic_source(stream.tenant, sketch) for stream, sketch in sketches.items()]
        counts = combine(sources, is_private=False, min_tenants=RULES.min_tenants)
        root = Node("", "e", 0.5, 0, NONE, can_change=False)
        node = Node("d", "e", 0.5, 300, self.rows)
        plan = plan_tree([root, node], {"d": counts}, rules)["d"]
        changed = len(plan.added) + len(plan.removed)
        if rules is RULES:
            assert changed <= max(2, 0.05 * max(len(self.rows), len(plan.rows) + 300))
        self.rows = plan.rows

    def hit_rate(self, keys: IntArray) -> float:
        return float(contains(self.rows, keys).mean())


def text(topic: int, rng: np.random.Generator, size: int = 2_000) -> IntArray:
    """Trigrams of a topic's, the n-th as often as 1 / n."""
    ranks = np.arange(1, NUM_NGRAMS + 1)
    drawn = rng.choice(ranks, size, p=(1 / ranks) / (1 / ranks).sum())
    keys = (topic + 1) << 42 | 1 << 21 | drawn
    assert (order_of(keys) == 3).all()
    return np.asarray(keys, np.int64)


def fed(topic: int, rounds: int, rng: np.random.Generator, domain: Domain | None = None) -> Domain:
    domain = domain or Domain()
    for _ in range(rounds):
        for tenant in TENANTS:
            domain.send(tenant, text(topic, rng))
        domain.update()
    return domain


def test_after_drift_the_hit_rate_is_that_of_a_table_made_for_the_new_traffic() -> None:
    rng = np.random.default_rng(0)
    sport, politics = 0, 1
    held_out = text(politics, rng, 20_000)
    domain = fed(sport, 40, rng)
    assert domain.hit_rate(held_out) == 0.0
    assert domain.hit_rate(text(sport, rng, 20_000)) > 0.45
    fresh = fed(politics, 40, rng)
    # 40 updates of 16,000 tokens each, a half-life of 20,000: at most a twentieth changes in each.
    fed(politics, 40, rng, domain)
    assert domain.hit_rate(held_out) >= fresh.hit_rate(held_out) - 0.02


def test_a_flood_of_twenty_times_moves_the_others_hit_rate_by_at_most_two_points() -> None:
    rng = np.random.default_rng(1)
    held_out = text(0, rng, 20_000)
    quiet, flooded = fed(0, 40, rng), fed(0, 40, rng)
    for _ in range(20):
        for tenant in TENANTS:
            quiet.send(tenant, text(0, rng))
            flooded.send(tenant, text(0, rng))
        # Half of the flood nobody else sends; half raises what the others send least.
        flooded.send(TENANTS[0], text(1, rng, 20_000))
        flooded.send(TENANTS[0], np.repeat(np.unique(text(0, rng))[-200:], 100))
        quiet.update()
        flooded.update()
    assert flooded.hit_rate(text(1, rng)) == 0.0
    assert abs(flooded.hit_rate(held_out) - quiet.hit_rate(held_out)) <= 0.02
