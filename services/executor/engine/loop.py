"""The device thread: receive, schedule, forward, process.

Knows when to wait and whom to wake; does not know batches' contents or gRPC.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from prometheus_client import Gauge, Histogram

from services.common.errors import STOPPING, Unavailable
from services.executor.engine.asides import Answer, Aside, Asides
from services.executor.engine.batching import Batcher, Plan
from services.executor.engine.engine import Engine
from services.executor.engine.items import Event, Item
from services.executor.engine.lanes import DeviceLane, Lanes, ThreadLanes

logger = logging.getLogger(__name__)

batch_tokens = Histogram(
    "hmi_batch_tokens",
    "Tokens of a batch.",
    buckets=(16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768),
)
batch_rows = Histogram(
    "hmi_batch_rows", "Rows of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
)
step_seconds = Histogram(
    "hmi_step_seconds",
    "Time from launching a batch to its outputs, in seconds.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
queue_tokens = Gauge("hmi_executor_queue_tokens", "Tokens of items that wait for a batch.")

_STOP = object()
_WAKE = object()


class EngineLoop:
    """Runs an engine on a thread of its own.

    Args:
        engine: What runs batches.
        batcher: What makes them.
        deliver: Called on this thread with the events of a pass; must not block. It is called at
            least once for each item with a final event, and never with an empty list.
        max_in_flight: Batches launched ahead of the outputs read, where a device computes behind
            this thread.
        num_workers: Threads that compute a batch each, on a CPU; 0 computes on this thread.
        reach: Called with a failpoint's name and the rows that reach it.
        on_failure: Called on this thread if it ends by a defect; nothing is answered any more.
    """

    def __init__(
        self,
        engine: Engine,
        batcher: Batcher,
        deliver: Callable[[list[Event]], None],
        *,
        max_in_flight: int = 1,
        num_workers: int = 0,
        reach: Callable[[str, int], None] = lambda _point, _num: None,
        on_failure: Callable[[], None] = lambda: None,
    ) -> None:
        self._batcher = batcher
        self._deliver = deliver
        self._reach = reach
        self._on_failure = on_failure
        self._inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._lanes: Lanes = (
            ThreadLanes(engine, num_workers, self.wake)
            if num_workers
            else DeviceLane(engine, max_in_flight)
        )
        self._asides = Asides()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish what is launched, end what waits with UNAVAILABLE, and join the thread."""
        self._inbox.put(_STOP)
        self._thread.join()

    def submit(self, items: Sequence[Item]) -> None:
        """Let items run. Any thread."""
        self._inbox.put(tuple(items))

    def cancel(self, item_ids: Sequence[int]) -> None:
        """End items that still wait. Any thread. Unknown ids are ignored."""
        self._inbox.put(list(item_ids))

    def wake(self) -> None:
        """Look again: an adapter came in or failed, or a batch is done. Any thread."""
        self._inbox.put(_WAKE)

    def run_aside(self, call: Callable[[], Answer]) -> Future[Answer]:
        """Let something run on this thread, when it is quiet or seldom. Any thread.

        Once this loop has stopped, what comes is never run.

        Args:
            call: Short: whatever comes while it runs waits for it.
        """
        aside = Aside(call)
        self._inbox.put(aside)
        return aside.future

    def _run(self) -> None:
        try:
            while self._receive():
                plan = self._schedule()
                self._forward(plan)
                self._process(is_idle=plan is None)
                self._step_aside()
            self._finish()
        except Exception:
            logger.critical("the engine failed", exc_info=True)
            self._on_failure()

    def _receive(self) -> bool:
        """Take in what has come, waiting for it if there is nothing to do. False: stop."""
        events: list[Event] = []
        messages = self._messages()
        for message in messages:
            if isinstance(message, tuple):
                for item in message:
                    events += self._batcher.add(item)
            elif isinstance(message, list):
                for item_id in message:
                    events += self._batcher.cancel(item_id)
            elif isinstance(message, Aside):
                self._asides.add(message)
        if messages:
            events += self._batcher.promote()
        self._tell(events + self._batcher.expire())
        return _STOP not in messages

    def _messages(self) -> list[object]:
        messages: list[object] = []
        try:
            if not self._has_work:
                messages.append(self._inbox.get(timeout=self._patience()))
            while True:
                messages.append(self._inbox.get_nowait())
        except queue.Empty:
            return messages

    @property
    def _has_work(self) -> bool:
        """Something can be done without a message."""
        can_launch = self._lanes.has_room and self._batcher.is_any_ready
        must_ask = self._lanes.num_in_flight > 0 and not self._lanes.calls_back
        return can_launch or must_ask

    def _patience(self) -> float | None:
        """Seconds until something is to be done without a message; None if nothing is."""
        deadline = min(self._batcher.next_deadline, self._asides.due_at)
        return None if deadline == float("inf") else max(0.0, deadline - time.monotonic())

    def _schedule(self) -> Plan | None:
        plan = self._batcher.plan() if self._lanes.has_room else None
        queue_tokens.set(self._batcher.num_tokens)
        return plan

    def _forward(self, plan: Plan | None) -> None:
        if plan is None:
            return
        num_rows = len(plan.rows)
        batch_rows.observe(num_rows)
        batch_tokens.observe(sum(row.item.num_tokens for row in plan.rows))
        self._reach("before_forward", num_rows)
        self._lanes.launch(plan)

    def _process(self, *, is_idle: bool) -> None:
        """Take back what is done and tell what came out."""
        for events, seconds in self._lanes.finished(is_idle=is_idle):
            step_seconds.observe(seconds)
            self._asides.note_batch()
            self._reach("after_forward", len(events))
            self._tell(events)

    def _step_aside(self) -> None:
        if self._lanes.num_in_flight:
            self._asides.note_batch()  # what computes beside this thread is not to be disturbed
        self._asides.run_one()

    def _tell(self, events: list[Event]) -> None:
        if events:
            self._deliver(events)

    def _finish(self) -> None:
        self._lanes.close()
        while self._lanes.num_in_flight:
            self._process(is_idle=True)
        self._asides.cancel()
        self._tell(self._batcher.drain(Unavailable("the executor is stopping", reason=STOPPING)))
