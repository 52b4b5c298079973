"""What each tenant used of this gateway since it started.

Counts items whose answers were given, once, however often they were retried; does not know prices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hmi.inference.v1 import inference_pb2


@dataclass(slots=True)
class Used:
    """One tenant's counts."""

    num_items: int = 0
    num_tokens: int = 0
    num_errors: int = 0

    def bill(self, predictions: Iterable[inference_pb2.Prediction]) -> None:
        """Count answers that are given to the caller."""
        for prediction in predictions:
            self.num_items += 1
            self.num_tokens += prediction.num_tokens


class Usage:
    """Every tenant's counts."""

    def __init__(self) -> None:
        self._by_tenant: dict[str, Used] = {}

    def of(self, tenant: str) -> Used:
        """A tenant's counts, to be read or added to."""
        used = self._by_tenant.get(tenant)
        if used is None:
            used = self._by_tenant[tenant] = Used()
        return used
