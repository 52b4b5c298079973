"""The budgets that gateways share: one bucket a tenant and rate, leased in parts.

Knows rates and amounts; does not know tenants, their quotas, or who holds which lease: what is
taken is out of the bucket until it is given back, and what is never given back comes again with the
rate. Budgets are in memory: each change would else cost an fsync, and a restart costs one burst.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import InvalidArgument
from services.common.rates import Bucket

_MAX_DEMANDS = 10_000
_MAX_NAME_CHARACTERS = 256
_FORGET_EVERY = 4_096


class Quotas:
    """All shared budgets.

    Args:
        now: A monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: dict[str, Bucket] = {}
        self._num_demands = 0

    def __len__(self) -> int:
        return len(self._buckets)

    def lease(self, demands: Sequence[pb.QuotaDemand]) -> Iterable[pb.QuotaGrant]:
        """Answer each demand, in their order; nothing is done if one is wrong.

        Raises:
            InvalidArgument: A field, or too many demands.
        """
        if len(demands) > _MAX_DEMANDS:
            raise InvalidArgument("demands", f"must hold at most {_MAX_DEMANDS}")
        for position, demand in enumerate(demands):
            _check(demand, f"demands[{position}]")
        now = self._now()
        grants = [self._grant(demand, now) for demand in demands]
        self._num_demands += len(demands)
        if self._num_demands >= _FORGET_EVERY:
            self._num_demands = 0
            self._forget(now)
        return grants

    def _grant(self, demand: pb.QuotaDemand, now: float) -> pb.QuotaGrant:
        bucket = self._buckets.get(demand.budget)
        if bucket is None:
            bucket = Bucket.full(demand.rate, demand.burst, now)
            self._buckets[demand.budget] = bucket
        bucket.set_rate(demand.rate, demand.burst, now)
        bucket.take(-demand.balance, now)
        granted = math.floor(max(0.0, min(demand.wanted, bucket.level)))
        bucket.take(granted, now)
        is_short = granted < demand.wanted or bucket.level < 0
        retry_s = bucket.wait_s(1.0, now) if is_short else 0.0
        return pb.QuotaGrant(granted=granted, retry_s=retry_s)

    def _forget(self, now: float) -> None:
        """Drop full buckets: an unknown one is full too."""
        for bucket in self._buckets.values():
            bucket.refill(now)
        self._buckets = {
            name: bucket for name, bucket in self._buckets.items() if bucket.level < bucket.burst
        }


def _check(demand: pb.QuotaDemand, field: str) -> None:
    if not 0 < len(demand.budget) <= _MAX_NAME_CHARACTERS:
        raise InvalidArgument(f"{field}.budget", f"1 to {_MAX_NAME_CHARACTERS} characters")
    if not (demand.rate > 0 and math.isfinite(demand.rate)):
        raise InvalidArgument(f"{field}.rate", "must be a finite number above 0")
    if not (demand.burst >= 1 and math.isfinite(demand.burst)):
        raise InvalidArgument(f"{field}.burst", "must be a finite number of at least 1")
    if not math.isfinite(demand.balance):
        raise InvalidArgument(f"{field}.balance", "must be finite")
    if not (demand.wanted >= 0 and math.isfinite(demand.wanted)):
        raise InvalidArgument(f"{field}.wanted", "must be a finite number of at least 0")
