"""Items that move between a base's two pools while they wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain import COLD_POOL
from services.gateway.item_queue import ItemQueue

POOLS = {"base", "base" + COLD_POOL}


@dataclass(eq=False)
class Waiting:
    """What the queue reads of an item."""

    item_id: int
    digest: str = "a"
    tenant: str = "acme"
    is_cold: bool = True
    weight: float = 1.0
    priority: int = 0
    cost: int = 1
    version: SimpleNamespace = field(init=False)

    def __post_init__(self) -> None:
        self.version = SimpleNamespace(digest=self.digest)

    @property
    def pool(self) -> str:
        return "base" + COLD_POOL if self.is_cold else "base"


def queue_of(*items: Waiting) -> Any:
    queue = ItemQueue()
    for item in items:
        queue.push(item)  # type: ignore[arg-type]
    return queue


def test_an_item_that_moved_is_met_in_its_new_pool_alone() -> None:
    waits, moves = Waiting(0), Waiting(1, "b")
    queue = queue_of(waits, moves)
    queue.loaded(["b"])
    queue.take(waits)
    assert queue.first({"base" + COLD_POOL}) is None
    assert queue.first({"base"}) is moves
    queue.hold_back(moves)
    assert queue.first(POOLS) is None
    queue.resume()
    assert queue.first(POOLS) is moves
    assert len(queue) == 1


def test_an_item_whose_model_came_in_while_it_was_away_stops_waiting_for_a_load() -> None:
    """As one does that comes back from an executor that was lost: another has its model."""
    comes_back = Waiting(0)
    queue = queue_of(comes_back, Waiting(1, "b"))
    queue.pass_over(comes_back, is_cold=False)
    assert queue.first({"base"}) is comes_back
    assert queue.first({"base" + COLD_POOL}).item_id == 1


@given(st.data())
def test_whatever_moves_each_item_is_taken_once(data: st.DataObject) -> None:
    digests = "abc"
    items = [
        Waiting(number, data.draw(st.sampled_from(digests)), data.draw(st.sampled_from("xy")))
        for number in range(12)
    ]
    queue = queue_of(*items)
    taken: list[Waiting] = []
    while len(queue):
        step = data.draw(st.sampled_from(["take", "take", "load", "evict", "pass", "resume"]))
        first = queue.first(POOLS)
        if step == "load":
            queue.loaded([data.draw(st.sampled_from(digests))])
        elif first is None or step == "resume":
            queue.resume()
        elif step == "take":
            queue.take(first)
            taken.append(first)
        else:
            queue.pass_over(first, is_cold=step == "evict")
    assert sorted(item.item_id for item in taken) == list(range(12))
