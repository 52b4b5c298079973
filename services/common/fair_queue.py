"""The fair queue: whose item is next.

A pure data structure in virtual time: no clock, no event loop, no executor. Each tenant has an
account of the service it got, in tokens divided by its weight; the next item is the one of the
tenant with the least (VTC: Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024,
algorithm 2, with the cost known at arrival). A tenant that comes back after idling is lifted to the
level of those who stayed, so that idling earns no credit; a tenant that got more than its share
before it left is remembered until the others have caught up.

Items wait in *pools* (the base they need; in a gateway, apart if their model is loaded nowhere),
because an executor's credit admits items of some pools only, and a batch holds items of one; the
account is one for all pools. The level is each pool's own
for as long as it holds items: executors of other bases may serve others far more meanwhile.

Two services use it: gateways, to give out executors' credit, and executors, to fill batches from
the items of all gateways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, Protocol, TypeVar


class Queueable(Protocol):
    """What the queue needs to know of an item. `item_id` grows with arrival."""

    @property
    def item_id(self) -> int: ...

    @property
    def weight(self) -> float: ...

    @property
    def priority(self) -> int: ...

    @property
    def tenant(self) -> str: ...

    @property
    def pool(self) -> str: ...

    @property
    def cost(self) -> int: ...


T = TypeVar("T", bound=Queueable)

_FORGET_EVERY = 1024


@dataclass(slots=True)
class _Lane(Generic[T]):
    """A tenant's items in one pool: higher priority first, then older first.

    An entry is (-priority, item id, number of the push, item). It is dead once its item has left,
    be it to another pool or to come back by another push.
    """

    heap: list[tuple[int, int, int, T]] = field(default_factory=list)
    num_dead: int = 0


@dataclass(slots=True, eq=False)
class _Account(Generic[T]):
    """A tenant's service, in tokens divided by weight, and its waiting items."""

    tenant: str
    service: float
    weight: float = 1.0
    num_items: int = 0
    lanes: dict[str, _Lane[T]] = field(default_factory=dict)
    in_pools: set[str] = field(default_factory=set)


class FairQueue(Generic[T]):
    """Waiting items of all tenants."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account[T]] = {}
        self._pools: dict[str, list[tuple[float, int, _Account[T]]]] = {}
        self._held_back: dict[str, list[_Account[T]]] = {}
        self._weights: Counter[float] = Counter()  # of the tenants that wait
        self._live: dict[int, T] = {}
        self._push_of: dict[int, int] = {}  # of what is live
        self._charged: set[int] = set()
        self._level = 0.0
        self._levels: dict[str, float] = {}  # of pools, since they hold items
        self._num_entries = 0
        self._num_pushes = 0

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, item: T) -> bool:
        return item.item_id in self._live

    def num_items(self, tenant: str) -> int:
        """Items of a tenant that wait."""
        account = self._accounts.get(tenant)
        return account.num_items if account else 0

    def pools(self) -> list[str]:
        """Pools that hold items."""
        return [pool for pool in self._pools.keys() | self._held_back.keys() if self._holds(pool)]

    @property
    def max_weight(self) -> float:
        """The largest weight of the tenants that wait; 0 if none does."""
        return max(self._weights, default=0.0)

    def items(self, pool: str) -> list[T]:
        """Waiting items of one pool, oldest first."""
        return [item for item in self._live.values() if item.pool == pool]

    def push(self, item: T) -> None:
        """Add an item; a tenant that was away is lifted to the level of those who stayed."""
        self._num_pushes += 1
        if self._num_pushes % _FORGET_EVERY == 0:
            self._forget_idle()
        level = self._level_of(item.pool)
        account = self._accounts.get(item.tenant)
        if account is None:
            account = self._accounts[item.tenant] = _Account(item.tenant, level)
        elif account.num_items == 0:
            account.service = max(account.service, level)
        self._weigh(account, item.weight)
        account.num_items += 1
        self._live[item.item_id] = item
        self._push_of[item.item_id] = self._num_pushes
        pool = item.pool
        lane = account.lanes.get(pool)
        if lane is None:
            lane = account.lanes[pool] = _Lane()
        heappush(lane.heap, (-item.priority, item.item_id, self._num_pushes, item))
        if pool not in account.in_pools:
            account.in_pools.add(pool)
            self._enter(pool, account)

    def put_back(self, item: T) -> None:
        """Add an item that was taken and not served: in its old place, and not charged again."""
        self.push(item)
        self._charged.add(item.item_id)

    def first(self, pools: Iterable[str]) -> T | None:
        """The item that is next among those of `pools`, left where it is.

        Between a tenant's pools priority decides as within them; between equal tenants the older
        item is next.
        """
        best: _Account[T] | None = None
        first: tuple[int, int, int, T] | None = None
        for pool in pools:
            account = self._head(pool)
            if account is None:
                continue
            entry = account.lanes[pool].heap[0]
            if best is None or first is None or account.service < best.service:
                is_next = True
            elif account is best:
                is_next = entry[:2] < first[:2]
            else:
                is_next = account.service == best.service and entry[1] < first[1]
            if is_next:
                best, first = account, entry
        return None if first is None else first[3]

    def hold_back(self, item: T) -> None:
        """Pass over the tenant of a pool's first item, in that pool, until `resume`."""
        pool = item.pool
        account = self._head(pool)
        if account is None or account.tenant != item.tenant:
            raise ValueError(f"item {item.item_id} is not its pool's first")
        heappop(self._pools[pool])
        self._held_back.setdefault(pool, []).append(account)

    def resume(self) -> None:
        """Let all tenants that were held back take part again."""
        held_back, self._held_back = self._held_back, {}
        for pool, accounts in held_back.items():
            for account in accounts:
                self._enter(pool, account)

    def take(self, item: T) -> None:
        """Remove an item to be served, and charge its tenant."""
        account = self._accounts[item.tenant]
        pool = item.pool
        self._level = max(self._level, account.service)
        self._levels[pool] = max(self._levels[pool], account.service)
        self.remove(item, keep_charged=True)
        if item.item_id in self._charged:
            self._charged.discard(item.item_id)
        else:
            account.service += item.cost / item.weight

    def remove(self, item: T, *, keep_charged: bool = False) -> bool:
        """Remove an item without serving it; whether it was there."""
        if self._live.pop(item.item_id, None) is None:
            return False
        del self._push_of[item.item_id]
        if not keep_charged:
            self._charged.discard(item.item_id)
        account = self._accounts[item.tenant]
        account.num_items -= 1
        if account.num_items == 0:
            self._unweigh(account)
        lane = account.lanes[item.pool]
        lane.num_dead += 1
        self._prune(lane)
        return True

    def _prune(self, lane: _Lane[T]) -> None:
        """Drop removed items from the front; from everywhere once they are the most."""
        heap = lane.heap
        push_of = self._push_of
        while heap and push_of.get(heap[0][1]) != heap[0][2]:
            heappop(heap)
            lane.num_dead -= 1
        if lane.num_dead > len(heap) // 2 + 16:
            lane.heap = [entry for entry in heap if push_of.get(entry[1]) == entry[2]]
            heapify(lane.heap)
            lane.num_dead = 0

    def _weigh(self, account: _Account[T], weight: float) -> None:
        """Count the weight of a tenant that waits, as its latest item tells it."""
        if account.num_items:
            if account.weight == weight:
                return
            self._unweigh(account)
        account.weight = weight
        self._weights[weight] += 1

    def _unweigh(self, account: _Account[T]) -> None:
        self._weights[account.weight] -= 1
        if not self._weights[account.weight]:
            del self._weights[account.weight]

    def _enter(self, pool: str, account: _Account[T]) -> None:
        self._num_entries += 1
        entry = (account.service, self._num_entries, account)
        heappush(self._pools.setdefault(pool, []), entry)

    def _head(self, pool: str) -> _Account[T] | None:
        """The account with the least service that has items in the pool.

        An entry keeps the service of when it was made; accounts only grow, so an outdated entry is
        never too late and is set right when it comes to the front.
        """
        heap = self._pools.get(pool, [])
        while heap:
            service, _, account = heap[0]
            if not account.lanes[pool].heap:
                heappop(heap)
                account.in_pools.discard(pool)
                del account.lanes[pool]
            elif service != account.service:
                self._num_entries += 1
                heapreplace(heap, (account.service, self._num_entries, account))
            else:
                return account
        self._pools.pop(pool, None)
        return None

    def _level_of(self, pool: str) -> float:
        """Where a tenant begins that comes for a pool."""
        if not self._holds(pool):
            self._levels[pool] = self._level
        return self._levels[pool]

    def _holds(self, pool: str) -> bool:
        """Whether any tenant, passed over or not, has items in the pool."""
        held_back = self._held_back.get(pool, ())
        return self._head(pool) is not None or any(a.lanes[pool].heap for a in held_back)

    def _forget_idle(self) -> None:
        """Drop the accounts of absent tenants that the others have caught up with."""
        self._levels = {pool: self._levels[pool] for pool in self.pools()}
        level = min([self._level, *self._levels.values()])
        self._accounts = {
            tenant: account
            for tenant, account in self._accounts.items()
            if account.num_items or account.in_pools or account.service > level
        }
