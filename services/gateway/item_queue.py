"""The gateway's fair queue, where items of models that are loaded nowhere wait apart.

Knows items and what the router says of their models; does not know executors. A tenant that may not
send more cold items (they wait for loads that take long) is passed over with those only, and its
items of other models go on.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.common.fair_queue import FairQueue
from services.gateway.domain import COLD_POOL, Item


class ItemQueue(FairQueue[Item]):
    """Waiting items; a base has two pools."""

    def __init__(self) -> None:
        super().__init__()
        self._cold: dict[str, dict[int, Item]] = {}  # by digest

    def push(self, item: Item) -> None:
        if item.is_cold:
            self._cold.setdefault(item.version.digest, {})[item.item_id] = item
        super().push(item)

    def remove(self, item: Item, *, keep_charged: bool = False) -> bool:
        if item.is_cold:
            digest = item.version.digest
            of_model = self._cold.get(digest, {})
            of_model.pop(item.item_id, None)
            if not of_model:
                self._cold.pop(digest, None)
        return super().remove(item, keep_charged=keep_charged)

    def pass_over(self, item: Item, *, is_cold: bool) -> None:
        """Let others go before a first item for which there is no room, until `resume`.

        Args:
            is_cold: Whether its model is loaded nowhere now, be it so when the item came or not.
        """
        if is_cold != item.is_cold:
            self._move(item, is_cold=is_cold)
        else:
            self.hold_back(item)

    def loaded(self, digests: Iterable[str]) -> None:
        """Models came into an executor's device memory."""
        for digest in digests:
            for item in list(self._cold.get(digest, {}).values()):
                self._move(item, is_cold=False)

    def bases(self) -> set[str]:
        """Bases that items wait for."""
        return {pool.removesuffix(COLD_POOL) for pool in self.pools()}

    def of_base(self, base: str) -> list[Item]:
        """Waiting items of one base, oldest first."""
        return [*self.items(base), *self.items(base + COLD_POOL)]

    def _move(self, item: Item, *, is_cold: bool) -> None:
        self.remove(item, keep_charged=True)
        item.is_cold = is_cold
        self.push(item)
