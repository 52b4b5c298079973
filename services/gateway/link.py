"""The way to one executor: its Execute and WatchStatus streams, and what is in flight there.

Knows the wire, credit and residency; does not choose items. Connects again by itself for as long as
it runs.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import grpc.aio

from hmi.executor.v1 import executor_pb2 as pb
from hmi.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from services.common.errors import STOPPING, HmiError, from_status
from services.common.server import CHANNEL_OPTIONS
from services.gateway.domain import Item, Version
from services.gateway.loads import Loads

if TYPE_CHECKING:
    from hmi.executor.v1.executor_pb2_grpc import ExecutorServiceAsyncStub

logger = logging.getLogger(__name__)

# One tenant may have this times the credit that is left in flight on a link (Choudhury and Hahne,
# "Dynamic Queue Length Thresholds for Shared-Memory Packet Switches", 1998): alone it takes two
# thirds of the window, and however many flood, whoever comes next finds some.
TENANT_PART = 2.0

RETRY_MIN_S = 0.05
RETRY_MAX_S = 1.0
_MAX_HINTED = 10_000  # to hint once more costs next to nothing

_OPTIONS = [
    *CHANNEL_OPTIONS,
    # The channel's own back-off must not be slower than ours.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


class StreamEnded(Exception):
    """The executor closed its stream, or is about to."""


class LinkEvents(Protocol):
    """What a link tells its router."""

    def link_changed(self, link: Link) -> None:
        """It came up, or has new credit."""
        ...

    def models_loaded(self, digests: Iterable[str]) -> None:
        """Models came into its device memory."""
        ...

    def link_down(self, link: Link, items: list[Item]) -> None:
        """It broke; `items` were in flight and have no answer."""
        ...

    def item_answered(self, item: Item, tensor: pb.Tensor) -> None:
        """An item's answer."""
        ...

    def item_failed(self, item: Item, error: HmiError) -> None:
        """An item's error."""
        ...


class Link:
    """One executor, as the gateway sees it.

    Attributes:
        credit: Tokens that may still be submitted.
        loads: Tokens in flight.
        window: Largest credit and load together seen: no item of more tokens can ever be submitted.
    """

    def __init__(self, address: str, token: str, gateway_id: str, events: LinkEvents) -> None:
        self.address = address
        self.base_digests: frozenset[str] = frozenset()
        self.credit = 0
        self.loads = Loads()
        self.window = 0
        self.is_up = False
        self._hinted: set[str] = set()
        self._tables: set[str] = set()
        self._in_flight: dict[int, Item] = {}
        self._outbox: list[pb.Command] = []
        self._wake = asyncio.Event()
        self._is_closing = False
        # Given with each call: an interceptor would copy every message of the stream once more.
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._gateway_id = gateway_id
        self._events = events

    @property
    def load(self) -> int:
        """Tokens in flight."""
        return self.loads.total

    @property
    def resident(self) -> set[str]:
        """Digests of the versions in the executor's device memory."""
        return self.loads.resident

    def has_room(self, item: Item, max_weight: float) -> bool:
        """Whether there is credit for an item, and its tenant has not taken too much of it: with
        items of models that are in device memory, or with others.

        Args:
            max_weight: The largest weight of the tenants that wait.
        """
        if self.credit < item.cost:
            return False
        load = self.loads.of(item)
        if load == 0:
            return True
        part = item.weight / max(item.weight, max_weight)
        return load + item.cost <= TENANT_PART * part * self.credit

    def submit(self, item: Item, timeout_ms: int) -> None:
        """Send an item. Its cost must be within the credit.

        Raises:
            ValueError: It does not fit the message; nothing has changed.
        """
        encoded = item.encoded
        submit = pb.Submit(
            item_id=item.item_id,
            key=item.version.key,
            tokenizer_digest=item.tokenizer_digest,
            token_ids=encoded.ids,
            num_first_segment_tokens=encoded.num_first,
            timeout_ms=timeout_ms,
            table_version=item.version.table_version,
            weight=item.weight,
        )
        self.credit -= item.cost
        self.loads.add(item)
        self._in_flight[item.item_id] = item
        self._hinted.discard(item.version.digest)
        self._tables.add(item.version.table_version)
        self._send(pb.Command(submit=submit))

    def cancel(self, item: Item) -> None:
        """Say that an item's answer is no longer wanted; whatever comes for it is passed over."""
        if self._in_flight.pop(item.item_id, None) is not None:
            self.loads.remove(item)
            self._send(pb.Command(cancel=pb.Cancel(item_id=item.item_id)))

    def hint(self, version: Version) -> None:
        """Say that items of a model wait, once until one of them is submitted; of tables that its
        domain's models have not read here yet, once.
        """
        table = version.table_version
        is_known = version.digest in self.resident or version.digest in self._hinted
        if is_known and (not table or table in self._tables):
            return
        for hinted, name in ((self._hinted, version.digest), (self._tables, table)):
            if len(hinted) >= _MAX_HINTED:
                hinted.clear()
            hinted.add(name)
        self._send(pb.Command(hint=pb.Hint(key=version.key, table_version=table)))

    def forget_hint(self, digest: str) -> None:
        """An item of a model left the queue unsubmitted: the next one that comes is news again."""
        self._hinted.discard(digest)

    def close(self) -> None:
        """Make `run` end at its next cancellation, even if that meets a breaking stream.

        A task group that is cancelled while a child fails raises the child's error alone
        (CPython 3.11).
        """
        self._is_closing = True

    async def run(self) -> None:
        """Keep connected, until closed and cancelled."""
        delay_s = RETRY_MIN_S
        async with grpc.aio.insecure_channel(self.address, options=_OPTIONS) as channel:
            stub: ExecutorServiceAsyncStub = ExecutorServiceStub(channel)
            while not self._is_closing:
                try:
                    was_up = await self._session(stub)
                except Exception:
                    # A defect of ours must not cost the executor: its next stream may well work.
                    logger.exception("a link failed", extra={"address": self.address})
                    was_up = False
                delay_s = RETRY_MIN_S if was_up else min(RETRY_MAX_S, 2 * delay_s)
                await asyncio.sleep(delay_s)

    async def _session(self, stub: ExecutorServiceAsyncStub) -> bool:
        """One life of the streams; whether it came up."""
        call = stub.Execute(metadata=self._metadata)
        self._outbox = [pb.Command(hello=pb.Hello(gateway_id=self._gateway_id))]
        self._wake.set()
        was_up = False
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write(call))
                group.create_task(self._read(call))
                group.create_task(self._follow_status(stub))
        except* (grpc.aio.AioRpcError, StreamEnded, asyncio.InvalidStateError) as broken:
            if self.is_up:
                extra = {"address": self.address, "error": repr(broken.exceptions[0])[:500]}
                logger.warning("lost an executor", extra=extra)
        finally:
            call.cancel()
            was_up = self.is_up
            self._reset()
        return was_up

    def _reset(self) -> None:
        items = list(self._in_flight.values())
        self._in_flight.clear()
        self._outbox.clear()
        self._hinted.clear()
        self._tables.clear()
        self.loads.clear()
        self.credit = self.window = 0
        self.is_up = False
        self._events.link_down(self, items)

    def _send(self, command: pb.Command) -> None:
        self._outbox.append(command)
        self._wake.set()

    async def _write(self, call: Any) -> None:
        """Everything said since the last write goes in one message."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            commands, self._outbox = self._outbox, []
            if commands:
                await call.write(pb.ExecuteRequest(commands=commands))

    async def _read(self, call: Any) -> None:
        async for response in call:
            has_credit = False
            for news in response.news:
                if news.HasField("credit"):
                    self.credit += news.credit.num_tokens
                    has_credit = True
                elif news.event.is_final:  # an encoder's item has one event, its last
                    self._finish(news.event)
            if has_credit:
                self._take_credit()
        raise StreamEnded

    def _take_credit(self) -> None:
        self.window = max(self.window, self.credit + self.load)
        if not self.is_up:
            logger.info("connected to an executor", extra={"address": self.address})
            self.is_up = True
        self._events.link_changed(self)

    def _finish(self, event: pb.Event) -> None:
        item = self._in_flight.get(event.item_id)
        if item is None:  # cancelled meanwhile
            return
        error = from_status(event.error) if event.HasField("error") else None
        if error is not None and error.reason == STOPPING:
            raise StreamEnded  # others run what is in flight here, this item too
        del self._in_flight[event.item_id]
        self.loads.remove(item)
        if error is not None:
            self._events.item_failed(item, error)
        else:
            self._events.item_answered(item, event.output)

    async def _follow_status(self, stub: ExecutorServiceAsyncStub) -> None:
        async for status in stub.WatchStatus(pb.WatchStatusRequest(), metadata=self._metadata):
            self.loads.moved(status.loaded_digests, status.evicted_digests)
            self._hinted.difference_update(status.loaded_digests)
            if status.loaded_digests:
                self._events.models_loaded(status.loaded_digests)
        raise StreamEnded
