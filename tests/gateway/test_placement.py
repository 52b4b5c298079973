"""Where items go when there are several executors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from services.gateway.placement import choose, ranked


@dataclass
class Target:
    address: str
    credit: int = 1000
    load: int = 0
    resident: set[str] = field(default_factory=set)


def has_credit(cost: int) -> Callable[[Target], bool]:
    return lambda target: target.credit >= cost


def test_models_spread_evenly_and_stay() -> None:
    targets = [Target(f"host{i}:1") for i in range(4)]
    models = [f"digest{i}" for i in range(4000)]
    first = {model: choose(model, 1, targets, has_credit(1)) for model in models}
    counts = Counter(target.address for target in first.values() if target)
    assert min(counts.values()) > 800
    fewer = targets[:3]
    for model, target in first.items():
        if target in fewer:
            assert choose(model, 1, fewer, has_credit(1)) is target


def test_a_busy_executor_spills_to_where_the_model_is_resident() -> None:
    targets = [Target(f"host{i}:1") for i in range(3)]
    first, second, third = ranked("digest", targets)
    first.load = 900
    assert choose("digest", 10, targets, has_credit(10)) is second
    third.resident.add("digest")
    assert choose("digest", 10, targets, has_credit(10)) is third


def test_without_credit_nothing_is_chosen() -> None:
    targets = [Target("a:1", credit=5), Target("b:1", credit=9)]
    assert choose("digest", 10, targets, has_credit(10)) is None
    assert choose("digest", 9, targets, has_credit(9)) is targets[1]
    assert choose("digest", 10, targets[:1], has_credit(10)) is None
