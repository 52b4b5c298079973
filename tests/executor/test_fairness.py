"""How many batches stand before a quiet tenant's item, whatever others have waiting."""

from __future__ import annotations

import numpy as np
import pytest

from services.executor.engine.batching import Batcher, Limits, Plan
from services.executor.engine.items import Item, ModelKey
from tests.executor.fake_base import FakeBase, loaded

ROWS = 8


def key(tenant: str, model: str = "m") -> ModelKey:
    return ModelKey(tenant, model, 1, f"digest-{tenant}-{model}", "base")


def item(number: int, tenant: str, model: str = "m", weight: float = 1.0) -> Item:
    return Item(number, key(tenant, model), np.arange(1, 5, dtype=np.int64), weight=weight)


@pytest.fixture
def fake() -> FakeBase:
    fake = FakeBase()
    fake.resident |= {key("flood"), key("quiet")}
    return fake


@pytest.fixture
def batcher(fake: FakeBase) -> Batcher:
    return Batcher({"base": loaded(fake)}, Limits(max_tokens=1000, max_rows=ROWS))


def tenants(plan: Plan | None) -> list[str]:
    return [] if plan is None else [row.item.key.tenant for row in plan.rows]


def ids(plan: Plan | None) -> list[int]:
    return [] if plan is None else [row.item.id for row in plan.rows]


def test_a_quiet_tenants_items_are_in_the_next_batch(batcher: Batcher) -> None:
    for number in range(100):
        batcher.add(item(number, "flood"))
    batcher.plan()  # the running batch
    for number in (100, 101, 102):
        batcher.add(item(number, "quiet"))
    assert tenants(batcher.plan()).count("quiet") == 3


def test_items_that_waited_for_their_adapters_do_not_overtake_another_tenants(
    batcher: Batcher, fake: FakeBase
) -> None:
    for number in range(100):
        batcher.add(item(number, "flood", f"cold-{number}"))
    fake.resident |= {key("flood", f"cold-{number}") for number in range(100)}
    assert batcher.promote() == []
    batcher.plan()
    batcher.add(item(100, "quiet"))
    assert 100 in ids(batcher.plan())


def test_batches_are_shared_by_weight(batcher: Batcher) -> None:
    for number in range(0, 200, 2):
        batcher.add(item(number, "flood", weight=3.0))
        batcher.add(item(number + 1, "quiet", weight=1.0))
    taken = [tenant for _ in range(10) for tenant in tenants(batcher.plan())]
    assert taken.count("flood") == 3 * taken.count("quiet") == 60


def test_idling_earns_no_batches(batcher: Batcher) -> None:
    for number in range(100):
        batcher.add(item(number, "flood"))
    for _ in range(6):
        batcher.plan()
    for number in range(100, 200):
        batcher.add(item(number, "quiet"))
    assert tenants(batcher.plan()).count("quiet") <= ROWS // 2 + 1


def test_a_batch_is_full_though_its_tenants_are_many(batcher: Batcher, fake: FakeBase) -> None:
    names = [f"t{number}" for number in range(20)]
    fake.resident |= {key(name) for name in names}
    for number, name in enumerate(names):
        batcher.add(item(number, name))
    assert [len(tenants(batcher.plan())) for _ in range(3)] == [ROWS, ROWS, 4]
