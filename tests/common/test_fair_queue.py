"""The fair queue against a brute-force model, and fairness in virtual time (issue 2, item 6)."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.fair_queue import FairQueue


@dataclass(eq=False)
class Thing:
    item_id: int
    tenant: str = "a"
    cost: int = 10
    weight: float = 1.0
    priority: int = 0
    pool: str = "base"
    arrived_at: float = 0.0


def drain(queue: FairQueue[Thing], pools: tuple[str, ...] = ("base",)) -> list[int]:
    order = []
    while (item := queue.first(pools)) is not None:
        queue.take(item)
        order.append(item.item_id)
    return order


def test_one_tenant_is_served_in_its_order_of_priority_and_arrival() -> None:
    queue = FairQueue[Thing]()
    for item_id, priority in enumerate((0, 0, 5, -1, 5)):
        queue.push(Thing(item_id, priority=priority))
    assert drain(queue) == [2, 4, 0, 1, 3]


def test_service_follows_weights_in_tokens() -> None:
    queue = FairQueue[Thing]()
    ids = itertools.count()
    for _ in range(300):
        queue.push(Thing(next(ids), "light", cost=10, weight=1.0))
        queue.push(Thing(next(ids), "heavy", cost=30, weight=3.0))
    tokens = {"light": 0, "heavy": 0}
    for _ in range(300):
        item = queue.first(["base"])
        assert item is not None
        queue.take(item)
        tokens[item.tenant] += item.cost
    assert tokens["heavy"] / tokens["light"] == pytest.approx(3.0, rel=0.02)


def test_idling_earns_no_credit() -> None:
    queue = FairQueue[Thing]()
    ids = itertools.count()
    for _ in range(100):
        queue.push(Thing(next(ids), "busy"))
    for _ in range(50):
        item = queue.first(["base"])
        assert item is not None
        queue.take(item)
    for _ in range(50):
        queue.push(Thing(next(ids), "late"))
    first_twenty = []
    for _ in range(20):
        item = queue.first(["base"])
        assert item is not None
        queue.take(item)
        first_twenty.append(item.tenant)
    assert 9 <= first_twenty.count("late") <= 11


def test_who_comes_for_a_slow_pool_begins_where_its_others_are() -> None:
    """Another pool's executors have served its tenant far more meanwhile."""
    queue = FairQueue[Thing]()
    ids = itertools.count()

    def serve(pool: str) -> str:
        item = queue.first([pool])
        assert item is not None
        queue.take(item)
        return item.tenant

    for number in range(1_000):
        queue.push(Thing(next(ids), "fast", pool="y"))
        serve("y")
        queue.push(Thing(next(ids), "slow", pool="x"))
        if number % 10 == 0:
            serve("x")
    for _ in range(50):
        queue.push(Thing(next(ids), "late", pool="x"))
    assert 9 <= [serve("x") for _ in range(20)].count("late") <= 11


def test_leaving_between_items_does_not_clear_the_account() -> None:
    """A tenant that sends one large item at a time gets no more than its share of tokens."""
    queue = FairQueue[Thing]()
    ids = itertools.count()
    tokens = {"steady": 0, "hopper": 0}
    for _ in range(2000):
        queue.push(Thing(next(ids), "steady", cost=10))
        if queue.num_items("hopper") == 0:
            queue.push(Thing(next(ids), "hopper", cost=200))
        item = queue.first(["base"])
        assert item is not None
        queue.take(item)
        tokens[item.tenant] += item.cost
    assert tokens["hopper"] <= tokens["steady"] + 200


def test_an_item_put_back_keeps_its_place_and_is_charged_once() -> None:
    queue = FairQueue[Thing]()
    items = [Thing(i, "a") for i in range(3)]
    for item in items:
        queue.push(item)
    other = Thing(3, "b")
    queue.push(other)
    queue.take(items[0])  # a is charged 10
    queue.put_back(items[0])
    assert queue.first(["base"]) is other
    queue.take(other)  # b is charged 10
    assert queue.first(["base"]) is items[0]
    queue.take(items[0])  # not charged again: a still stands at 10
    queue.push(Thing(4, "b"))
    taken = queue.first(["base"])
    assert taken is not None
    queue.take(taken)
    assert len(queue) == 2


def test_a_pool_without_credit_holds_back_only_itself() -> None:
    queue = FairQueue[Thing]()
    queue.push(Thing(0, "a", pool="x"))
    queue.push(Thing(1, "a", pool="y"))
    queue.push(Thing(2, "b", pool="y"))
    assert sorted(drain(queue, ("y",))) == [1, 2]
    assert drain(queue, ("x", "y")) == [0]
    assert len(queue) == 0
    assert queue.first(["x", "y"]) is None


def test_who_is_held_back_in_a_pool_is_passed_over_until_resumed() -> None:
    queue = FairQueue[Thing]()
    for number, (tenant, pool) in enumerate(
        [("flood", "base"), ("flood", "base"), ("quiet", "base"), ("flood", "other")]
    ):
        queue.push(Thing(number, tenant, 10, pool=pool))
    first = queue.first(["base"])
    assert first is not None
    assert first.tenant == "flood"
    queue.hold_back(first)
    assert drain(queue) == [2]
    assert drain(queue, ("other",)) == [3]
    queue.push(Thing(4, "flood", 10))
    assert drain(queue) == []
    assert set(queue.pools()) == {"base"}
    queue.resume()
    assert drain(queue) == [0, 1, 4]


def test_what_is_held_back_can_be_removed() -> None:
    queue = FairQueue[Thing]()
    item = Thing(0, "flood", 10)
    queue.push(item)
    queue.hold_back(item)
    assert queue.pools() == ["base"]
    assert queue.remove(item)
    assert queue.pools() == []
    queue.resume()
    assert queue.first(["base"]) is None
    with pytest.raises(ValueError, match="not its pool's first"):
        queue.hold_back(item)


def test_the_largest_weight_is_of_those_who_wait() -> None:
    queue = FairQueue[Thing]()
    assert queue.max_weight == 0.0
    light, heavy = Thing(0, "light", 10, weight=1.0), Thing(1, "heavy", 10, weight=4.0)
    queue.push(light)
    queue.push(heavy)
    assert queue.max_weight == 4.0
    queue.remove(heavy)
    assert queue.max_weight == 1.0
    queue.push(Thing(2, "light", 10, weight=2.0))  # the tenant was given another weight
    assert queue.max_weight == 2.0


class Model:
    """The queue's rules, as plainly as they can be written."""

    def __init__(self) -> None:
        self.items: list[Thing] = []
        self.service: dict[str, float] = {}
        self.charged: set[int] = set()
        self.level = 0.0
        self.levels: dict[str, float] = {}

    def push(self, item: Thing) -> None:
        if not any(other.pool == item.pool for other in self.items):
            self.levels[item.pool] = self.level
        if not any(other.tenant == item.tenant for other in self.items):
            level = self.levels[item.pool]
            self.service[item.tenant] = max(self.service.get(item.tenant, 0.0), level)
        self.items.append(item)

    def heads(self, pools: set[str]) -> dict[str, list[Thing]]:
        """By tenant, its first item in each pool."""
        heads: dict[str, list[Thing]] = {}
        for pool in pools:
            for tenant in {i.tenant for i in self.items if i.pool == pool}:
                own = [i for i in self.items if (i.tenant, i.pool) == (tenant, pool)]
                first = min(own, key=lambda i: (-i.priority, i.item_id))
                heads.setdefault(tenant, []).append(first)
        return heads

    def take(self, item: Thing) -> None:
        self.level = max(self.level, self.service[item.tenant])
        pool = item.pool
        self.levels[pool] = max(self.levels[pool], self.service[item.tenant])
        self.items.remove(item)
        if item.item_id in self.charged:
            self.charged.discard(item.item_id)
        else:
            self.service[item.tenant] += item.cost / item.weight


actions = st.lists(
    st.tuples(
        st.sampled_from(["push", "take", "take", "remove", "put_back"]),
        st.sampled_from("abc"),
        st.integers(1, 50),
        st.integers(-1, 1),
        st.sampled_from("xy"),
        st.integers(0, 10),
    ),
    max_size=120,
)


@settings(max_examples=300, deadline=None)
@given(actions)
def test_the_queue_agrees_with_its_rules(
    script: list[tuple[str, str, int, int, str, int]],
) -> None:
    queue, model = FairQueue[Thing](), Model()
    taken: list[Thing] = []
    weights = {"a": 1.0, "b": 2.0, "c": 0.5}
    for item_id, (action, tenant, cost, priority, pool, pick) in enumerate(script):
        if action == "push":
            item = Thing(item_id, tenant, cost, weights[tenant], priority, pool)
            queue.push(item)
            model.push(item)
        elif action == "remove" and model.items:
            item = model.items[pick % len(model.items)]
            assert queue.remove(item)
            model.items.remove(item)
            model.charged.discard(item.item_id)
        elif action == "put_back" and taken:
            item = taken.pop(pick % len(taken))
            queue.put_back(item)
            model.push(item)
            model.charged.add(item.item_id)
        elif action == "take":
            pools = {"x", "y"} if pick > 5 else {pool}
            heads = model.heads(pools)
            found = queue.first(sorted(pools))
            if not heads:
                assert found is None
                continue
            least = min(model.service[t] for t in heads)
            assert found is not None
            assert found in heads[found.tenant]
            assert model.service[found.tenant] == pytest.approx(least)
            queue.take(found)
            model.take(found)
            taken.append(found)
        assert len(queue) == len(model.items)
        for name in "abc":
            assert queue.num_items(name) == sum(i.tenant == name for i in model.items)


BATCH_ITEMS, BATCH_S = 32, 0.05
COST = 48
CAPACITY = BATCH_ITEMS / BATCH_S  # items a second


class Fifo:
    """The unfair queue."""

    def __init__(self) -> None:
        self._items: deque[Thing] = deque()

    def push(self, item: Thing) -> None:
        self._items.append(item)

    def first(self, _pools: list[str]) -> Thing | None:
        return self._items[0] if self._items else None

    def take(self, _item: Thing) -> None:
        self._items.popleft()


def poisson(tenant: str, rate: float, seconds: float, seed: int) -> list[Thing]:
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 10)
    times = np.cumsum(gaps)
    return [Thing(0, tenant, COST, arrived_at=float(t)) for t in times[times < seconds]]


def simulate(
    arrivals: list[Thing], make: Callable[[], FairQueue[Thing] | Fifo], seconds: float
) -> dict[str, list[float]]:
    """Latencies by tenant of an executor that fills each batch from the queue as it begins."""
    queue = make()
    waiting = deque(sorted(arrivals, key=lambda item: item.arrived_at))
    latencies: dict[str, list[float]] = {}
    now, number = 0.0, itertools.count()
    while now < seconds:
        while waiting and waiting[0].arrived_at <= now:
            item = waiting.popleft()
            item.item_id = next(number)
            queue.push(item)
        batch: list[Thing] = []
        while len(batch) < BATCH_ITEMS and (first := queue.first(["base"])) is not None:
            queue.take(first)
            batch.append(first)
        if not batch:
            now = waiting[0].arrived_at if waiting else seconds
            continue
        now += BATCH_S
        for item in batch:
            latencies.setdefault(item.tenant, []).append(now - item.arrived_at)
    return latencies


def test_a_flood_delays_a_tenant_within_its_share_by_two_batches_at_most() -> None:
    seconds, share = 60.0, CAPACITY / 4
    modest = poisson("modest", 0.8 * share, seconds - 1, seed=1)
    flood = poisson("flood", 20 * share, seconds, seed=2)

    def copies() -> list[Thing]:
        return [Thing(0, i.tenant, COST, arrived_at=i.arrived_at) for i in modest + flood]

    alone = simulate(list(modest), FairQueue, seconds)["modest"]
    fair = simulate(copies(), FairQueue, seconds)
    unfair = simulate(copies(), Fifo, seconds)
    assert len(fair["modest"]) == len(modest)
    p99 = np.percentile(fair["modest"], 99)
    assert p99 <= np.percentile(alone, 99) + 2 * BATCH_S
    num_fair = sum(map(len, fair.values()))
    assert num_fair >= 0.95 * sum(map(len, unfair.values()))
    assert len(unfair.get("modest", [])) < 0.5 * len(modest)  # the flood does drown it unfairly
