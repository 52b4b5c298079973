"""What is in flight on one link, in tokens: all, and by tenant.

Knows which models are in the executor's device memory; does not know credit. Items that wait there
for their model to be loaded (they are parked: the executor gives their credit back) count apart, so
that a tenant's cold models do not hold back its hot ones.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.gateway.domain import Item


class Loads:
    """The tokens in flight.

    Attributes:
        total: Of all tenants.
        resident: Digests of the versions in the executor's device memory.
    """

    def __init__(self) -> None:
        self.total = 0
        self.resident: set[str] = set()
        self._hot: dict[str, int] = {}  # by tenant
        self._cold: dict[str, int] = {}
        self._waiting: dict[str, dict[int, Item]] = {}  # items of `_cold`, by digest

    def of(self, item: Item) -> int:
        """Of the item's tenant: what counts beside this item."""
        loads = self._hot if item.version.digest in self.resident else self._cold
        return loads.get(item.tenant, 0)

    def add(self, item: Item) -> None:
        """An item is submitted."""
        self.total += item.cost
        digest = item.version.digest
        if digest in self.resident:
            _count(self._hot, item.tenant, item.cost)
        else:
            _count(self._cold, item.tenant, item.cost)
            self._waiting.setdefault(digest, {})[item.item_id] = item

    def remove(self, item: Item) -> None:
        """An item has ended."""
        self.total -= item.cost
        digest = item.version.digest
        waiting = self._waiting.get(digest)
        if waiting is None or waiting.pop(item.item_id, None) is None:
            _count(self._hot, item.tenant, -item.cost)
            return
        _count(self._cold, item.tenant, -item.cost)
        if not waiting:
            del self._waiting[digest]

    def moved(self, loaded: Iterable[str], evicted: Iterable[str]) -> None:
        """Models came into device memory, and left it."""
        self.resident.update(loaded)
        self.resident.difference_update(evicted)
        for digest in loaded:
            for item in self._waiting.pop(digest, {}).values():
                _count(self._cold, item.tenant, -item.cost)
                _count(self._hot, item.tenant, item.cost)

    def clear(self) -> None:
        """The executor is gone, and all that was there."""
        self.total = 0
        for held in (self.resident, self._hot, self._cold, self._waiting):
            held.clear()


def _count(loads: dict[str, int], tenant: str, num_tokens: int) -> None:
    load = loads.get(tenant, 0) + num_tokens
    if load:
        loads[tenant] = load
    else:
        del loads[tenant]
