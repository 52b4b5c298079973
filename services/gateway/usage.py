"""What each tenant used of this gateway since it started.

Counts answered items once, however often they were retried; does not know prices.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Used:
    """One tenant's counts."""

    num_items: int = 0
    num_tokens: int = 0
    num_errors: int = 0


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
