"""Where batches compute: behind the engine's thread on a device, or beside it on threads.

Knows how many batches run at once and when one is done; does not know why a batch was made or who
waits for it. Methods belong to the engine's thread.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch

from services.executor.engine.batching import Plan
from services.executor.engine.engine import Engine, InFlight
from services.executor.engine.items import Event


class Finished(NamedTuple):
    """A batch that is done: its rows' final events, and the seconds since its launch."""

    events: list[Event]
    seconds: float


class Lanes(Protocol):
    """Batches in flight."""

    @property
    def num_in_flight(self) -> int:
        """Batches launched and not yet taken back."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether another may be launched."""
        ...

    @property
    def calls_back(self) -> bool:
        """Whether a batch that is done is announced; otherwise `finished` must be asked."""
        ...

    def launch(self, plan: Plan) -> None:
        """Start a batch. There must be room."""
        ...

    def finished(self, *, is_idle: bool) -> list[Finished]:
        """What is done. May wait for a batch if nothing else can be launched meanwhile.

        Args:
            is_idle: There is nothing to launch.
        """
        ...

    def close(self) -> None:
        """No batch comes any more. May wait for those in flight, which are still to be taken."""
        ...


class DeviceLane:
    """One stream of batches, launched from the engine's own thread. A device computes behind it;
    on a CPU launching is computing.

    Args:
        max_in_flight: Batches launched ahead of the outputs read: 1 on a CPU.
    """

    calls_back = False

    def __init__(self, engine: Engine, max_in_flight: int) -> None:
        self._engine = engine
        self._max_in_flight = max_in_flight
        self._launched: deque[tuple[InFlight, float]] = deque()

    @property
    def num_in_flight(self) -> int:
        return len(self._launched)

    @property
    def has_room(self) -> bool:
        return len(self._launched) < self._max_in_flight

    def launch(self, plan: Plan) -> None:
        started = time.perf_counter()
        self._launched.append((self._engine.launch(plan), started))

    def finished(self, *, is_idle: bool) -> list[Finished]:
        """The oldest batch, if no other can be launched."""
        if not self._launched or (self.has_room and not is_idle):
            return []
        batch, started = self._launched.popleft()
        events = self._engine.collect(batch)
        return [Finished(events, time.perf_counter() - started)]

    def close(self) -> None:
        """Nothing to put away: what is in flight is waited for when it is taken back."""


class ThreadLanes:
    """A batch a thread, each thread on a core of its own (docs/adr/0008-a-batch-a-core.md).

    Args:
        num_threads: Batches that compute at once.
        wake: Called from any thread when a batch is done.
    """

    calls_back = True

    def __init__(self, engine: Engine, num_threads: int, wake: Callable[[], None]) -> None:
        self._engine = engine
        self._num_threads = num_threads
        self._wake = wake
        self._pool = ThreadPoolExecutor(
            num_threads,
            thread_name_prefix="compute",
            initializer=torch.set_num_threads,
            initargs=(max(1, torch.get_num_threads() // num_threads),),
        )
        self._done: queue.SimpleQueue[Future[Finished]] = queue.SimpleQueue()
        self.num_in_flight = 0

    @property
    def has_room(self) -> bool:
        return self.num_in_flight < self._num_threads

    def launch(self, plan: Plan) -> None:
        self.num_in_flight += 1
        self._pool.submit(self._run, plan).add_done_callback(self._announce)

    def finished(self, *, is_idle: bool) -> list[Finished]:
        """The batches that are done by now. Never waits: the engine's thread is woken."""
        batches = []
        while not self._done.empty():
            self.num_in_flight -= 1
            batches.append(self._done.get().result())
        return batches

    def close(self) -> None:
        self._pool.shutdown()

    def _run(self, plan: Plan) -> Finished:
        started = time.perf_counter()
        events = self._engine.step(plan)
        return Finished(events, time.perf_counter() - started)

    def _announce(self, batch: Future[Finished]) -> None:
        self._done.put(batch)
        self._wake()
