"""Between the event loop, where streams live, and the engine's thread.

Knows which items are unanswered and who waits for each; does not know streams or batches. Every
method but `deliver` belongs to the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from services.executor.engine.asides import Answer
from services.executor.engine.batching import Batcher, Limits
from services.executor.engine.engine import Engine, Observe
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import Event, Item, ModelKey
from services.executor.engine.loop import EngineLoop
from services.executor.failpoints import Reach


class Sink(Protocol):
    """Whoever waits for items."""

    def post(self, item_id: int, event: Event) -> None:
        """Take news of the item that the sink knows by this id."""
        ...

    def flush(self) -> None:
        """All news of a pass has been posted."""
        ...


class Dispatcher:
    """Hands items to the engine and its events back to those who wait.

    Args:
        bases: By digest. May grow, and lose what no item uses.
        limits: Size of a batch.
        max_in_flight, num_workers: As in EngineLoop.
        reach: Failpoints.
        on_failure: Called on the event loop if the engine's thread ends by a defect.
        observe: As in Engine.
    """

    def __init__(
        self,
        bases: Mapping[str, LoadedBase],
        limits: Limits,
        *,
        max_in_flight: int,
        num_workers: int,
        reach: Reach,
        on_failure: Callable[[], None],
        observe: Observe,
    ) -> None:
        self._bases = bases
        self._event_loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[Sink, int]] = {}
        self._num_waiting: Counter[str] = Counter()  # by base
        self._drained = asyncio.Event()
        self._drained.set()
        self._engine_loop = EngineLoop(
            Engine(bases, observe),
            Batcher(bases, limits),
            self.deliver,
            max_in_flight=max_in_flight,
            num_workers=num_workers,
            reach=reach,
            on_failure=lambda: self._on_event_loop(on_failure),
        )
        self.num_tokens = 0
        self.is_stopping = False

    def start(self) -> None:
        self._engine_loop.start()

    async def drain(self, timeout_s: float) -> None:
        """Wait until every item is answered, or for this long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._drained.wait()
        except TimeoutError:
            return

    async def stop(self) -> None:
        """End the engine's thread; what still waits is answered UNAVAILABLE."""
        self.is_stopping = True
        await asyncio.to_thread(self._engine_loop.stop)

    def submit(self, items: Sequence[tuple[int, Item]], sink: Sink) -> None:
        """Let items run; `sink` gets a final event for each, under the id given beside it."""
        for item_id, item in items:
            self._waiting[item.id] = (sink, item_id)
            self._num_waiting[item.key.base_digest] += 1
            self.num_tokens += item.num_tokens
        self._drained.clear()
        self._engine_loop.submit([item for _, item in items])

    def cancel(self, items: Sequence[Item]) -> None:
        """End items that no batch has taken yet."""
        self._engine_loop.cancel([item.id for item in items])

    def wake(self) -> None:
        """Tell the engine that an adapter came in or failed. Any thread."""
        self._engine_loop.wake()

    def run_aside(self, call: Callable[[], Answer]) -> Future[Answer]:
        """Let something short run on the engine's thread, see EngineLoop. Any thread."""
        return self._engine_loop.run_aside(call)

    def prefetch(self, key: ModelKey, table_version: str) -> None:
        """Begin to load an adapter and tables; nothing if their base is not served here."""
        base = self._bases.get(key.base_digest)
        if base is not None:
            base.prefetch(key, table_version)

    def is_cold(self, item: Item) -> bool:
        """Whether an item would have to wait for its adapter or its tables."""
        return not self._bases[item.key.base_digest].is_ready(item.key, item.table_version)

    def is_used(self, base_digest: str) -> bool:
        """Whether an unanswered item is of this base. If not, the engine does not touch it."""
        return self._num_waiting[base_digest] > 0

    def deliver(self, events: list[Event]) -> None:
        """Take a pass's events. The engine's thread."""
        self._on_event_loop(lambda: self._deliver(events))

    def _on_event_loop(self, call: Callable[[], None]) -> None:
        if not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(call)

    def _deliver(self, events: list[Event]) -> None:
        sinks = set()
        for event in events:
            sink, item_id = self._waiting[event.item.id]
            if event.is_final:
                del self._waiting[event.item.id]
                self._num_waiting[event.item.key.base_digest] -= 1
                self.num_tokens -= event.item.num_tokens
            sink.post(item_id, event)
            sinks.add(sink)
        for sink in sinks:
            sink.flush()
        if not self._waiting:
            self._drained.set()
