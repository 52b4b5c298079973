"""How much a tenant may ask: rates of requests and tokens, and room in the queue.

Knows tenants, quotas and what each refusal is called; whether a budget still holds something is the
leases' to say, with several gateways too. A request is admitted when its tenant's budgets hold
anything, and its tokens are taken once they are counted, so that one large request is served and
then paid off, and refusing costs no tokenization.
"""

from __future__ import annotations

from hmi.admin.v1 import resources_pb2
from services.common.errors import ResourceExhausted, Unavailable
from services.gateway.config import GatewaySettings
from services.gateway.quota_leases import Budget, QuotaLeases

QUEUE_RETRY_S = 0.5
_REQUESTS = "requests_per_second"
_TOKENS = "tokens_per_second"


class Limits:
    """Every tenant's quotas.

    Args:
        settings: Defaults for what a quota leaves open.
        leases: The budgets that gateways share.
    """

    def __init__(self, settings: GatewaySettings, leases: QuotaLeases) -> None:
        self._settings = settings
        self._leases = leases

    async def admit_request(self, tenant: resources_pb2.Tenant) -> None:
        """Count one request. Waits for the store only if this gateway's leases are used up.

        Raises:
            ResourceExhausted: naming the quota, with the time to wait.
        """
        budgets = self._budgets(tenant)
        while lacking := [quota for quota in budgets if not self._leases.holds(budgets[quota])]:
            quota = lacking[0]
            wait_s = self._leases.wait_s(budgets[quota])
            if wait_s > 0:
                raise ResourceExhausted(
                    f"the tenant's quota of {quota} is used up: retry in {wait_s:.3f} s",
                    subject=f"tenant:{tenant.name}/{quota}",
                    reason="QUOTA_EXCEEDED",
                    retry_after_s=wait_s,
                )
            await self._leases.more(budgets[quota])
        if _REQUESTS in budgets:
            self._leases.take(budgets[_REQUESTS], 1)

    def charge_tokens(self, tenant: resources_pb2.Tenant, num_tokens: int) -> None:
        """Take the tokens of an admitted request."""
        budgets = self._budgets(tenant)
        if _TOKENS in budgets:
            self._leases.take(budgets[_TOKENS], num_tokens)

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

    def _budgets(self, tenant: resources_pb2.Tenant) -> dict[str, Budget]:
        """The tenant's budgets, with its quotas of this moment; none for what is unlimited."""
        settings, quota = self._settings, tenant.quota
        rates = {
            _REQUESTS: quota.requests_per_second or settings.default_requests_per_second,
            _TOKENS: quota.tokens_per_second or settings.default_tokens_per_second,
        }
        # A budget holds at least one request (or token), or a small rate would admit none.
        return {
            name: self._leases.budget(
                f"{tenant.name}/{name}", rate, max(1.0, rate * settings.quota_burst_s)
            )
            for name, rate in rates.items()
            if rate
        }
