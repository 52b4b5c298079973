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


class Charge:
    """The tokens of one admitted request, taken as its pieces are tokenized.

    Args:
        budget: None if the tenant's tokens are unlimited.
        max_tokens: The request may have.
    """

    def __init__(self, limits: Limits, tenant: str, budget: Budget | None, max_tokens: int) -> None:
        self._limits = limits
        self._tenant = tenant
        self._budget = budget
        self._max_tokens = max_tokens
        self._num_tokens = 0

    async def take(self, num_tokens: int) -> None:
        """Take a piece's tokens. Waits for the store only if this gateway's lease is used up, and
        only for the first piece.

        Raises:
            ResourceExhausted: The request has more tokens than one may (it takes no retry: the
                error has no RetryInfo), or others have used up the budget since it was admitted.
        """
        if self._budget is None:
            return
        self._num_tokens += num_tokens
        if self._num_tokens > self._max_tokens:
            raise ResourceExhausted(
                f"the request has {self._num_tokens} tokens or more, and by the tenant's quota of "
                f"{_TOKENS} one request may have {self._max_tokens}: send fewer inputs at a time",
                subject=f"tenant:{self._tenant}/{_TOKENS}",
                reason="REQUEST_TOO_LARGE",
            )
        if self._num_tokens == num_tokens:
            await self._limits.until_held(self._tenant, {_TOKENS: self._budget})
        self._limits.leases.take(self._budget, num_tokens)


class Limits:
    """Every tenant's quotas.

    Args:
        settings: Defaults for what a quota leaves open.
        leases: The budgets that gateways share.
    """

    def __init__(self, settings: GatewaySettings, leases: QuotaLeases) -> None:
        self._settings = settings
        self.leases = leases

    async def admit_request(self, tenant: resources_pb2.Tenant, max_item_tokens: int) -> Charge:
        """Count one request. Waits for the store only if this gateway's leases are used up.

        Args:
            max_item_tokens: Tokens of the longest input: one can be sent whatever the quota is.

        Raises:
            ResourceExhausted: naming the quota, with the time to wait.
        """
        budgets = self._budgets(tenant)
        await self.until_held(tenant.name, budgets)
        if _REQUESTS in budgets:
            self.leases.take(budgets[_REQUESTS], 1)
        tokens = budgets.get(_TOKENS)
        most = 0 if tokens is None else max(int(tokens.burst), max_item_tokens)
        return Charge(self, tenant.name, tokens, most)

    async def until_held(self, tenant: str, budgets: dict[str, Budget]) -> None:
        """Wait until each budget holds something, for as long as the store may still say so.

        Raises:
            ResourceExhausted: naming the quota, with the time to wait.
        """
        while lacking := [quota for quota in budgets if not self.leases.holds(budgets[quota])]:
            quota = lacking[0]
            wait_s = self.leases.wait_s(budgets[quota])
            if wait_s > 0:
                raise ResourceExhausted(
                    f"the tenant's quota of {quota} is used up: retry in {wait_s:.3f} s",
                    subject=f"tenant:{tenant}/{quota}",
                    reason="QUOTA_EXCEEDED",
                    retry_after_s=wait_s,
                )
            await self.leases.more(budgets[quota])

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
            name: self.leases.budget(
                f"{tenant.name}/{name}", rate, max(1.0, rate * settings.quota_burst_s)
            )
            for name, rate in rates.items()
            if rate
        }
