"""Which waiting items run next.

Knows tenants, lengths, deadlines and whether an item's adapter is on the device; does not know what
a batch computes. Tenants with ready items share batches by weight, whichever gateway they came
through: gateways decide who may send, but what was sent before another tenant's item came, or
waited here for its adapter, must not stand before it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from services.common.deadlines import Deadlines
from services.common.errors import Cancelled, DeadlineExceeded, HmiError, InvalidArgument
from services.common.fair_queue import FairQueue
from services.executor.engine.interfaces import LoadedBase, Pinned, Slot
from services.executor.engine.items import Event, Item, ModelKey
from services.executor.engine.tables import Table

Needs = tuple[ModelKey, str]  # a model and the version of the tables it reads


@dataclass(frozen=True, slots=True)
class Limits:
    """How large a batch may be.

    Attributes:
        max_tokens: Tokens of all rows. A longer single row makes a batch of its own.
        max_rows: Rows.
    """

    max_tokens: int
    max_rows: int


@dataclass(frozen=True, slots=True)
class Row:
    """An item with what it needs pinned."""

    item: Item
    pinned: Pinned

    @property
    def slot(self) -> Slot:
        """Its adapter."""
        return self.pinned.slot

    @property
    def table(self) -> Table:
        """Its tables, if its base is split.

        Raises:
            LookupError: It is not.
        """
        if self.pinned.table is None:
            raise LookupError(f"{self.item.key} reads no tables")
        return self.pinned.table


@dataclass(slots=True, eq=False)
class _Ready:
    """A row as the fair queue sees it."""

    row: Row
    item_id: int
    tenant: str
    pool: str  # digest of the unsplit base: what a batch has in common
    weight: float
    cost: int
    priority: int = 0  # gateways send a tenant's items in their order


@dataclass(frozen=True, slots=True)
class Plan:
    """One batch, of the bases that share an unsplit digest. Whoever runs it releases its rows."""

    unsplit_digest: str
    rows: tuple[Row, ...]


class Batcher:
    """Items that wait, and the batches made of them. Not thread-safe.

    An item is *cold* until its adapter and tables are pinned, then *ready*. Batches take ready
    items only, of the tenant that got least first and of each the oldest, so neither a cold item
    nor a tenant's many delay another's.

    Args:
        bases: By digest. May grow.
        limits: Size of a batch.
    """

    def __init__(self, bases: Mapping[str, LoadedBase], limits: Limits) -> None:
        self._bases = bases
        self._limits = limits
        self._waiting: dict[int, Item] = {}
        self._cold: dict[Needs, list[Item]] = {}
        self._queue = FairQueue[_Ready]()
        self._ready: dict[int, _Ready] = {}
        self._deadlines = Deadlines[int](lambda item_id: item_id not in self._waiting)
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, item: Item) -> list[Event]:
        """Let an item wait; events if its adapter is known to be unusable, or no base here can
        go on from what the item has had before.
        """
        if item.kv_ref is not None:
            error = InvalidArgument("kv_ref", "encoders keep no keys and values of earlier tokens")
            return [Event(item, error=error)]
        self._waiting[item.id] = item
        self.num_tokens += item.num_tokens
        if item.deadline < float("inf"):
            self._deadlines.add(item.deadline, item.id)
        needs = (item.key, item.table_version)
        cold = self._cold.get(needs)
        if cold is not None:
            cold.append(item)
            return []
        self._cold[needs] = [item]
        return self._warm_up(needs)

    def cancel(self, item_id: int) -> list[Event]:
        """End an item that still waits; nothing if it is in a batch or has ended."""
        item = self._waiting.get(item_id)
        return [] if item is None else [self._fail(item, Cancelled("the item was cancelled"))]

    def promote(self) -> list[Event]:
        """Make ready what has become resident, and end what cannot be loaded."""
        return [event for needs in list(self._cold) for event in self._warm_up(needs)]

    def expire(self) -> list[Event]:
        """End the items whose deadline has passed."""
        return [
            self._fail(self._waiting[item_id], DeadlineExceeded("the deadline passed"))
            for item_id in self._deadlines.expired(time.monotonic())
        ]

    @property
    def is_any_ready(self) -> bool:
        """A batch can be made."""
        return bool(self._ready)

    @property
    def next_deadline(self) -> float:
        """The earliest deadline of a waiting item, or infinity."""
        at = self._deadlines.next_at()
        return float("inf") if at is None else at

    def plan(self) -> Plan | None:
        """The next batch: of the bases of the item that is next. None if none is ready."""
        first = self._queue.first(self._queue.pools())
        return None if first is None else Plan(first.pool, self._take(first))

    def drain(self, error: HmiError) -> list[Event]:
        """End every waiting item with this error."""
        return [self._fail(item, error) for item in list(self._waiting.values())]

    def _warm_up(self, needs: Needs) -> list[Event]:
        """Pin what each cold item of these needs, or leave them cold while it loads."""
        key, table_version = needs
        base = self._bases[key.base_digest]
        items = self._cold.pop(needs)
        for position, item in enumerate(items):
            try:
                pinned = base.acquire(key, table_version)
            except HmiError as error:
                return [self._fail(failed, error) for failed in items[position:]]
            if pinned is None:
                self._cold[needs] = items[position:]
                return []
            ready = _Ready(
                Row(item, pinned),
                item.id,
                key.tenant,
                base.unsplit_digest,
                item.weight,
                item.num_tokens,
            )
            self._ready[item.id] = ready
            self._queue.push(ready)
        return []

    def _take(self, first: _Ready) -> tuple[Row, ...]:
        """Rows off the queue in its order until the next does not fit: none is passed over."""
        pools = (first.pool,)
        rows: list[Row] = []
        num_tokens = 0
        limits = self._limits
        ready: _Ready | None = first
        while ready is not None and len(rows) < limits.max_rows:
            num_tokens += ready.cost
            if rows and num_tokens > limits.max_tokens:
                break
            self._queue.take(ready)
            self._leave(ready.row.item)
            rows.append(ready.row)
            ready = self._queue.first(pools)
        return tuple(rows)

    def _leave(self, item: Item) -> _Ready | None:
        """Forget an item; what it was in the queue, if it was ready."""
        del self._waiting[item.id]
        self.num_tokens -= item.num_tokens
        return self._ready.pop(item.id, None)

    def _fail(self, item: Item, error: HmiError) -> Event:
        needs = (item.key, item.table_version)
        ready = self._leave(item)
        if ready is not None:
            self._queue.remove(ready)
            self._bases[item.key.base_digest].release(ready.row.pinned)
        elif needs in self._cold:
            left = [other for other in self._cold[needs] if other.id != item.id]
            self._cold[needs] = left
            if not left:
                del self._cold[needs]
        return Event(item, error=error)
