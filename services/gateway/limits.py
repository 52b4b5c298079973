"""How much a tenant may ask: rates of requests and tokens, and room in the queue.

Knows numbers and time; does not know who asks for what. Rates are token buckets that may go into
debt: a request is admitted when its tenant's buckets hold anything, and its tokens are taken once
they are counted, so that one large request is served and then paid off, and refusing costs no
tokenization.

With several gateways each enforces an equal part, the quota divided by the gateways registered now:
the sum never exceeds the quota, and a tenant that talks to one gateway only gets that gateway's
part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hmi.admin.v1 import resources_pb2
from services.common.errors import ResourceExhausted, Unavailable
from services.gateway.config import GatewaySettings

QUEUE_RETRY_S = 0.5


@dataclass(slots=True)
class Bucket:
    """A token bucket that may go into debt. A rate of 0 is unlimited."""

    rate: float
    burst: float
    level: float
    updated_at: float

    @classmethod
    def full(cls, rate: float, burst: float, now: float) -> Bucket:
        return cls(rate, burst, burst, now)

    def set_rate(self, rate: float, burst: float, now: float) -> None:
        """Go on with another rate, keeping what was used."""
        if (rate, burst) != (self.rate, self.burst):
            self._refill(now)
            self.level += burst - self.burst
            self.rate, self.burst = rate, burst

    def wait_s(self, need: float, now: float) -> float:
        """Seconds until the level reaches `need`; 0 if it has."""
        if self.rate == 0:
            return 0.0
        self._refill(now)
        return max(0.0, (need - self.level) / self.rate)

    def take(self, amount: float, now: float) -> None:
        """Use an amount, into debt if need be."""
        if self.rate:
            self._refill(now)
            self.level -= amount

    def _refill(self, now: float) -> None:
        self.level = min(self.burst, self.level + (now - self.updated_at) * self.rate)
        self.updated_at = now


@dataclass(slots=True)
class _Buckets:
    requests: Bucket
    tokens: Bucket


class Limits:
    """Every tenant's buckets.

    Args:
        settings: Defaults for what a quota leaves open.
        num_gateways: Gateways that share the quotas, at least 1.
        now: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        num_gateways: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._num_gateways = num_gateways
        self._now = now
        self._buckets: dict[str, _Buckets] = {}

    def admit_request(self, tenant: resources_pb2.Tenant) -> None:
        """Count one request.

        Raises:
            ResourceExhausted: naming the quota, with the time to wait.
        """
        buckets = self._refreshed(tenant)
        if buckets is None:
            return
        now = self._now()
        for bucket, quota in (
            (buckets.requests, "requests_per_second"),
            (buckets.tokens, "tokens_per_second"),
        ):
            wait_s = bucket.wait_s(1.0, now)
            if wait_s > 0:
                raise ResourceExhausted(
                    f"the tenant's quota of {quota} is used up: retry in {wait_s:.3f} s",
                    subject=f"tenant:{tenant.name}/{quota}",
                    reason="QUOTA_EXCEEDED",
                    retry_after_s=wait_s,
                )
        buckets.requests.take(1.0, now)

    def charge_tokens(self, tenant: resources_pb2.Tenant, num_tokens: int) -> None:
        """Take the tokens of an admitted request."""
        buckets = self._refreshed(tenant)
        if buckets is not None:
            buckets.tokens.take(num_tokens, self._now())

    def check_room(
        self, tenant: resources_pb2.Tenant, num_new: int, num_waiting: int, num_waiting_of_all: int
    ) -> None:
        """Whether the queue takes `num_new` further items of the tenant.

        Raises:
            ResourceExhausted: The tenant's part is full.
            Unavailable: The whole queue is full.
        """
        bound = self.max_queued_items(tenant)
        if num_waiting + num_new > bound:
            raise ResourceExhausted(
                f"{num_waiting} items of the tenant are waiting and at most {bound} may: retry",
                subject=f"tenant:{tenant.name}/max_queued_items",
                reason="QUEUE_FULL",
                retry_after_s=QUEUE_RETRY_S,
            )
        if num_waiting_of_all + num_new > self._settings.max_queued_items:
            raise Unavailable(
                "the gateway's queue is full: retry",
                reason="OVERLOADED",
                retry_after_s=QUEUE_RETRY_S,
            )

    def max_queued_items(self, tenant: resources_pb2.Tenant) -> int:
        """Items of the tenant that may wait in this gateway."""
        return tenant.quota.max_queued_items or self._settings.default_max_queued_items

    def _refreshed(self, tenant: resources_pb2.Tenant) -> _Buckets | None:
        """The tenant's buckets, with its quota of this moment; None if it has none."""
        settings, quota = self._settings, tenant.quota
        requests = quota.requests_per_second or settings.default_requests_per_second
        tokens = quota.tokens_per_second or settings.default_tokens_per_second
        if not requests and not tokens:
            self._buckets.pop(tenant.name, None)
            return None
        share = max(1, self._num_gateways())
        requests, tokens, now = requests / share, tokens / share, self._now()
        # A bucket holds at least one request (or token), or a small rate would admit none.
        bursts = [max(1.0, rate * settings.quota_burst_s) for rate in (requests, tokens)]
        buckets = self._buckets.get(tenant.name)
        if buckets is None:
            buckets = _Buckets(
                Bucket.full(requests, bursts[0], now), Bucket.full(tokens, bursts[1], now)
            )
            self._buckets[tenant.name] = buckets
            return buckets
        buckets.requests.set_rate(requests, bursts[0], now)
        buckets.tokens.set_rate(tokens, bursts[1], now)
        return buckets
