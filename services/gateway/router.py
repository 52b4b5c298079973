"""Items between the queue and the executors.

Knows items, links and deadlines; does not know tenants' requests or protobuf answers. Event driven:
arrivals, credit, lost executors and deadlines each start one pass that gives out all the credit
there is. An item leaves the queue only against credit, so that order is decided as late as
possible; when its executor dies it goes back to its old place, is not charged again, and its answer
is still given once.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable, Sequence
from functools import partial

from hmi.executor.v1 import executor_pb2
from services.common.deadlines import Deadlines
from services.common.errors import (
    DeadlineExceeded,
    HmiError,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from services.gateway import metrics
from services.gateway.config import GatewaySettings
from services.gateway.domain import COLD_POOL, Item, Place
from services.gateway.item_queue import ItemQueue
from services.gateway.link import Link
from services.gateway.mirror import Mirror
from services.gateway.placement import choose, is_cold, ranked
from services.gateway.usage import Usage

logger = logging.getLogger(__name__)


class Router:
    """Gives items to executors that the mirror knows, which know this gateway by its id."""

    def __init__(
        self, settings: GatewaySettings, mirror: Mirror, usage: Usage, gateway_id: str
    ) -> None:
        self._settings = settings
        self._mirror = mirror
        self._usage = usage
        self._gateway_id = gateway_id
        self._loop = asyncio.get_running_loop()
        self._ids = itertools.count(1)
        self._links: dict[str, tuple[Link, asyncio.Task[None]]] = {}
        self._links_by_base: dict[str, list[Link]] = {}
        self._executing: dict[int, Link] = {}
        self._deadlines = Deadlines[Item](lambda item: item.place is Place.DONE)
        self._deadline_timer: asyncio.TimerHandle | None = None
        self._give_up_timers: dict[str, asyncio.TimerHandle] = {}
        self._is_pass_planned = False
        self._has_new_room = False
        self._is_closing = False
        self.queue = ItemQueue()
        metrics.queue_items.set_function(lambda: len(self.queue))
        mirror.on_change(self._refresh_links)
        self._refresh_links()

    async def close(self) -> None:
        """Leave the executors; what waits or runs fails UNAVAILABLE."""
        tasks = [task for _, task in self._links.values()]
        for link, task in self._links.values():
            link.close()
            task.cancel()
        self._is_closing = True
        await asyncio.gather(*tasks, return_exceptions=True)
        for base in self.queue.bases():
            self._fail_all(base, "the gateway is stopping")
        for timer in (self._deadline_timer, *self._give_up_timers.values()):
            if timer is not None:
                timer.cancel()

    def next_item_id(self) -> int:
        """A number for a new item."""
        return next(self._ids)

    def is_served(self, base_digest: str) -> bool:
        """Whether an executor of the base is connected."""
        return base_digest in self._links_by_base

    def is_connected(self, address: str) -> bool:
        """Whether the executor at an address has given credit."""
        return address in self._links and self._links[address][0].is_up

    @property
    def has_executor(self) -> bool:
        """Whether any executor is connected."""
        return bool(self._links_by_base)

    def submit(self, items: Sequence[Item]) -> None:
        """Queue items of one model."""
        first = items[0]
        links = self._links_by_base.get(first.base_digest)
        is_hot = not links or not is_cold(first.version.digest, links)
        if links:
            ranked(first.version.digest, links)[0].hint(first.version)
        else:
            self._wait_for_executor(first.base_digest)
        for item in items:
            item.is_cold = not is_hot
            self.queue.push(item)
            self._deadlines.add(item.deadline, item)
        self._arm_deadline_timer()
        self._plan_pass()

    def cancel(self, items: Iterable[Item]) -> None:
        """Drop items whose answers are no longer wanted; ended ones stay as they are."""
        for item in items:
            if item.place is not Place.DONE:
                self._drop(item)
                metrics.cancelled.inc()

    # What links say (LinkEvents).

    def link_changed(self, link: Link) -> None:
        if all(link not in self._links_by_base.get(base, ()) for base in link.base_digests):
            self._index_links()
        self._plan_pass(has_new_room=True)

    def models_loaded(self, digests: Iterable[str]) -> None:
        self.queue.loaded(digests)
        self._plan_pass(has_new_room=True)

    def link_down(self, link: Link, items: list[Item]) -> None:
        self._index_links()
        for item in items:
            self._executing.pop(item.item_id, None)
            if item.place is Place.DONE:
                continue
            if item.num_attempts >= self._settings.max_attempts:
                self._fail(item, Unavailable("executors were lost too often", retry_after_s=1.0))
                continue
            metrics.retries_total.inc()
            item.place = Place.QUEUED
            self.queue.put_back(item)
        self._refresh_links()
        self._plan_pass(has_new_room=True)

    def item_answered(self, item: Item, tensor: executor_pb2.Tensor) -> None:
        self._executing.pop(item.item_id, None)
        self._plan_pass(has_new_room=True)
        item.place = Place.DONE
        metrics.answered.inc()
        item.reply.answer(item.index, tensor)

    def item_failed(self, item: Item, error: HmiError) -> None:
        self._executing.pop(item.item_id, None)
        self._plan_pass(has_new_room=True)
        self._fail(item, error)

    # Executors come and go.

    def _refresh_links(self) -> None:
        """A link for every registered executor.

        One that is gone from the store lives on while its stream does.
        """
        if self._is_closing:
            return
        wanted = {member.address: member for member in self._mirror.executors()}
        for address, member in wanted.items():
            if address not in self._links:
                token = self._settings.service_token.get_secret_value()
                link = Link(address, token, self._gateway_id, self)
                self._links[address] = (link, asyncio.create_task(link.run()))
            self._links[address][0].base_digests = frozenset(member.base_digests)
        for address, (link, task) in list(self._links.items()):
            if address not in wanted and not link.is_up:
                del self._links[address]
                link.close()
                task.cancel()
        self._index_links()
        self._plan_pass()

    def _index_links(self) -> None:
        self._links_by_base = {}
        for link, _ in self._links.values():
            if link.is_up:
                for base in link.base_digests:
                    self._links_by_base.setdefault(base, []).append(link)
        for base in self._give_up_timers.keys() & self._links_by_base.keys():
            self._give_up_timers.pop(base).cancel()
        for base in self.queue.bases() - self._links_by_base.keys():
            self._wait_for_executor(base)
        metrics.executors_connected.set(sum(link.is_up for link, _ in self._links.values()))

    def _wait_for_executor(self, base: str) -> None:
        if base not in self._give_up_timers:
            timer = self._loop.call_later(self._settings.executor_wait_s, self._give_up, base)
            self._give_up_timers[base] = timer

    def _give_up(self, base: str) -> None:
        self._give_up_timers.pop(base, None)
        self._fail_all(base, "no executor serves this model's base now: retry")

    def _fail_all(self, base: str, message: str) -> None:
        for item in self.queue.of_base(base):
            self._take_out(item)
            self._fail(item, Unavailable(message, reason="NO_EXECUTOR", retry_after_s=1.0))

    # Giving out credit.

    def _plan_pass(self, *, has_new_room: bool = False) -> None:
        """One pass for everything that happens in this turn of the event loop."""
        self._has_new_room |= has_new_room
        if not self._is_pass_planned:
            self._is_pass_planned = True
            self._loop.call_soon(self._pass)

    def _pass(self) -> None:
        self._is_pass_planned = False
        if self._has_new_room:
            self._has_new_room = False
            self.queue.resume()
        pools = {pool for base in self._links_by_base for pool in (base, base + COLD_POOL)}
        now = self._loop.time()
        while (item := self.queue.first(pools)) is not None:
            links = self._links_by_base[item.base_digest]
            has_room = partial(Link.has_room, item=item, max_weight=self.queue.max_weight)
            link = choose(item.version.digest, item.cost, links, has_room)
            if link is not None:
                self._dispatch(item, link, now)
            elif item.cost > max(other.window for other in links):
                self._take_out(item)
                self._fail(item, ResourceExhausted("the item exceeds what an executor takes"))
            elif any(other.credit >= item.cost for other in links):
                # Its tenant has its part: whose turn is next?
                self.queue.pass_over(item, is_cold=is_cold(item.version.digest, links))
            else:
                pools -= {item.base_digest, item.base_digest + COLD_POOL}

    def _dispatch(self, item: Item, link: Link, now: float) -> None:
        self.queue.take(item)
        if item.num_attempts == 0:
            metrics.queue_seconds.observe(now - item.queued_at)
        item.num_attempts += 1
        item.place = Place.EXECUTING
        try:
            link.submit(item, max(1, int((item.deadline - now) * 1000)))
        except Exception:
            # One item's defect is its own: the pass goes on for everybody else.
            logger.exception("an item cannot be submitted", extra={"item_id": item.item_id})
            self._fail(item, Internal("internal error: the item cannot be submitted"))
            return
        self._executing[item.item_id] = link

    # The end of items.

    def _take_out(self, item: Item) -> None:
        """Take an item out of the queue that will not be submitted."""
        self.queue.remove(item)
        for link in self._links_by_base.get(item.base_digest, ()):
            link.forget_hint(item.version.digest)

    def _drop(self, item: Item) -> None:
        """Take an item out of wherever it is."""
        if item.place is Place.QUEUED:
            self._take_out(item)
        else:
            self._executing.pop(item.item_id).cancel(item)
            self._plan_pass(has_new_room=True)
        item.place = Place.DONE

    def _fail(self, item: Item, error: HmiError) -> None:
        item.place = Place.DONE
        self._usage.of(item.tenant).num_errors += 1
        metrics.failed.inc()
        item.reply.fail(error)

    def _arm_deadline_timer(self) -> None:
        at = self._deadlines.next_at()
        timer = self._deadline_timer
        if at is None or (timer is not None and timer.when() <= at and not timer.cancelled()):
            return
        if timer is not None:
            timer.cancel()
        self._deadline_timer = self._loop.call_at(at, self._expire)

    def _expire(self) -> None:
        self._deadline_timer = None
        for item in self._deadlines.expired(self._loop.time()):
            self._drop(item)
            self._usage.of(item.tenant).num_errors += 1
            metrics.expired.inc()
            item.reply.fail(DeadlineExceeded("the deadline passed before the answer"))
        self._arm_deadline_timer()
