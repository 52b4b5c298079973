"""Parts of the budgets that all gateways share, leased from the knowledge store.

Knows budgets by name, rate and level; does not know tenants or what a unit is. A lease is a slice:
what waits now plus SLICE_S seconds of the rate. It is renewed in the background when half of it is
used, so that requests wait for the store only when they outrun that, and what is left of it
after LEASE_S goes back. Budgets that are all gone are refused here until the store said that there
is more, without asking it again.

While the store does not answer, each gateway uses its share instead: rate and burst divided by the
gateways last known. Nobody waits for the store then; it is asked again in the background. A share
is one bucket for good, which leases empty too, so that a loss of contact brings nothing new; and
what was given of it is settled with the store, which did not know of it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.rates import Bucket

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

# Longer costs fewer calls; shorter leaves less with a gateway that does not need it.
SLICE_S = 0.1
# What lasts longer than this was more than needed.
LEASE_S = 1.0
# A request may wait this long for a store that is silent, once: then shares are used.
ANSWER_S = 0.5
# Time between attempts to reach a store that did not answer.
RETRY_S = 1.0
_MAX_DEMANDS = 10_000


@dataclass(slots=True, eq=False)
class Budget:
    """One shared budget as this gateway sees it; times are the clock's, in seconds.

    `level` is what is left of the lease, or if negative what was used beyond it and is not settled
    with the store. `share` is what this gateway may use while the store is away.
    """

    name: str
    rate: float
    burst: float
    share: Bucket
    level: float = 0.0
    leased_at: float = float("-inf")
    refused_until: float = float("-inf")
    is_asked: bool = False
    waiting: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def slice_s(self) -> float:
        """Seconds of the rate in a slice; a budget that holds little is leased in less."""
        return min(SLICE_S, self.burst / self.rate / 2)

    @property
    def slice(self) -> float:
        """Units leased beyond what waits; 0 for a rate so low that each request asks."""
        return self.rate * self.slice_s // 1

    def demand(self, now: float) -> pb.QuotaDemand:
        """Hand back what is left, and take what is needed now."""
        is_fresh = now - self.leased_at < LEASE_S
        num_waiting = sum(not future.done() for future in self.waiting)
        wanted = num_waiting + (self.slice if is_fresh else 0)
        return pb.QuotaDemand(
            budget=self.name, rate=self.rate, burst=self.burst, balance=self.level, wanted=wanted
        )

    def granted(self, demand: pb.QuotaDemand, grant: pb.QuotaGrant, now: float) -> None:
        """Go on with a new lease; what was used while it was asked for is used of it."""
        self.level += grant.granted - demand.balance
        if demand.wanted:
            self.leased_at = now
        if grant.retry_s > 0:
            # Gateways that ask for the same budget must not keep an order, or the first has all.
            pause_s = self.slice_s * random.uniform(0.5, 1)  # noqa: S311 — spreads, hides nothing
            self.refused_until = now + max(grant.retry_s, pause_s)

    def use_lease(self, amount: float, now: float) -> None:
        """Use an amount of the lease, and as much of the share as it holds: a tenant that has had
        its quota here finds no other when contact is lost."""
        self.level -= amount
        self.share.refill(now)
        self.share.level -= min(amount, max(0.0, self.share.level))

    def use_share(self, amount: float, now: float) -> None:
        """Use an amount while the store is away."""
        self.level -= amount
        self.share.take(amount, now)

    def cut_off(self, now: float) -> None:
        """Go on with the share. What is owed is paid from it, and what is left of the lease is not
        added; what the store refuses stays refused."""
        self.level = min(self.level, 0.0)
        self.share.take(-self.level, now)
        self.share.take(max(0.0, self.refused_until - now) * self.share.rate, now)

    def forgive(self, now: float) -> None:
        """Owe the store no more than it may have missed: its own bucket overflows meanwhile.

        Were the store's bucket empty when contact was lost, then after T seconds it holds rate ⋅ T
        and no more than the burst. A share that was full by then gave no more than burst + rate ⋅ T
        (over the gateways), hence all of it is owed for T up to burst / rate; after that, what this
        leaves.
        """
        self.share.refill(now)
        self.level = max(self.level, min(0.0, self.share.level - 2 * self.share.burst))

    def reconnect(self, now: float) -> None:
        """Go on with leases; the store is owed what the share is in debt, and the share is not."""
        self.forgive(now)
        self.share.level = max(0.0, self.share.level)

    def wake(self) -> None:
        """Let those look again who wait."""
        for future in self.waiting:
            if not future.done():
                future.set_result(None)
        self.waiting.clear()

    def is_idle(self, now: float) -> bool:
        """Whether there is nothing to remember: no lease, no debt, nobody who waits."""
        self.share.refill(now)
        is_settled = self.level == 0 and self.share.level >= self.share.burst
        return is_settled and not self.is_asked and now > self.leased_at + LEASE_S


class QuotaLeases:
    """This gateway's leases.

    Args:
        stub: The knowledge store.
        num_gateways: Gateways that share the budgets, at least 1, as last known.
        now: A monotonic clock, in seconds.
    """

    def __init__(
        self,
        stub: KnowledgeServiceAsyncStub,
        num_gateways: Callable[[], int],
        now: Callable[[], float],
    ) -> None:
        self._stub = stub
        self._num_gateways = num_gateways
        self._now = now
        self._budgets: dict[str, Budget] = {}
        self._asking: list[Budget] = []
        self._task: asyncio.Task[None] | None = None
        self._is_cut_off = False
        self._retry_at = float("-inf")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[QuotaLeases]:
        """Give back what is not used, until the block is left."""
        returning = asyncio.create_task(self._return_for_ever())
        try:
            yield self
        finally:
            tasks = [task for task in (returning, self._task) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def budget(self, name: str, rate: float, burst: float) -> Budget:
        """The budget of that name, at the rate (units a second, more than 0) of this moment."""
        found = self._budgets.get(name)
        if found is None:
            share = Bucket.full(*self._share_of(rate, burst), self._now())
            found = self._budgets[name] = Budget(name, rate, burst, share)
        elif (found.rate, found.burst) != (rate, burst):
            found.rate, found.burst = rate, burst
            found.refused_until = float("-inf")
        return found

    def holds(self, budget: Budget) -> bool:
        """Whether a unit is here to be taken now."""
        return self._wait_for_share_s(budget) == 0 if self._is_cut_off else budget.level >= 1

    def wait_s(self, budget: Budget) -> float:
        """Of a budget that holds nothing: seconds for which asking for more is in vain."""
        if self._is_cut_off:
            return self._wait_for_share_s(budget)
        return max(0.0, budget.refused_until - self._now())

    async def more(self, budget: Budget) -> None:
        """Wait for the store's answer to one demand, whatever it is; or for its absence."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        budget.waiting.append(future)
        self._ask(budget)
        await future

    def take(self, budget: Budget, amount: float) -> None:
        """Use an amount, into debt if need be."""
        now = self._now()
        if self._is_cut_off:
            budget.use_share(amount, now)
            if now >= self._retry_at:
                self._ask(budget)
            return
        budget.use_lease(amount, now)
        if budget.level < budget.slice / 2 and now >= budget.refused_until:
            self._ask(budget)

    def _share_of(self, rate: float, burst: float) -> tuple[float, float]:
        """Rate and burst of this gateway's share."""
        num = max(1, self._num_gateways())
        # It holds at least one unit, or a small rate would admit nothing.
        return rate / num, max(1.0, burst / num)

    def _wait_for_share_s(self, budget: Budget) -> float:
        now = self._now()
        budget.share.set_rate(*self._share_of(budget.rate, budget.burst), now)
        return budget.share.wait_s(1.0, now)

    def _ask(self, budget: Budget) -> None:
        """Demand at the next call, which begins when the one before has ended."""
        if not budget.is_asked:
            budget.is_asked = True
            self._asking.append(budget)
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._lease_all())

    async def _lease_all(self) -> None:
        while self._asking:
            batch, self._asking = self._asking[:_MAX_DEMANDS], self._asking[_MAX_DEMANDS:]
            if self._is_cut_off:
                for budget in batch:
                    budget.forgive(self._now())
            demands = [budget.demand(self._now()) for budget in batch]
            request = pb.LeaseQuotaRequest(demands=demands)
            try:
                grants = (await self._stub.LeaseQuota(request, timeout=ANSWER_S)).grants
                self._connected()
                for budget, demand, grant in zip(batch, demands, grants, strict=True):
                    budget.granted(demand, grant, self._now())
            except grpc.aio.AioRpcError as error:
                self._cut_off(error.code().name)
            except Exception:
                # A defect of ours; requests must go on all the same.
                logger.exception("leasing quotas failed")
                self._cut_off("INTERNAL")
            for budget in batch:
                budget.is_asked = False
                budget.wake()

    def _cut_off(self, code: str) -> None:
        """Go on with shares."""
        now = self._now()
        self._retry_at = now + RETRY_S
        if self._is_cut_off:
            return
        self._is_cut_off = True
        logger.warning("quotas are enforced by equal shares", extra={"code": code})
        for budget in self._budgets.values():
            budget.share.set_rate(*self._share_of(budget.rate, budget.burst), now)
            budget.cut_off(now)

    def _connected(self) -> None:
        """Go on with leases, and settle what was used meanwhile."""
        if not self._is_cut_off:
            return
        self._is_cut_off = False
        logger.info("quotas are leased again")
        now = self._now()
        for budget in self._budgets.values():
            budget.reconnect(now)
            if budget.level < 0:
                self._ask(budget)

    async def _return_for_ever(self) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 2)
            now = self._now()
            for name, budget in list(self._budgets.items()):
                if budget.is_idle(now):
                    del self._budgets[name]
                elif budget.level != 0 and now >= max(budget.leased_at + LEASE_S, self._retry_at):
                    self._ask(budget)
