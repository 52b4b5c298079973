"""The executor as a whole, but for the store: bases in, an ExecutorService out.

Knows the order in which parts start and stop; does not know where bases come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from services.executor.admission import Admission
from services.executor.credit import CreditPool
from services.executor.dispatch import Dispatcher
from services.executor.engine.batching import Limits
from services.executor.engine.engine import Observe
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import ModelKey
from services.executor.failpoints import Reach, off
from services.executor.servicer import ExecutorServicer
from services.executor.session import Session
from services.executor.status import Snapshot


@dataclass(frozen=True, slots=True)
class Options:
    """How an executor runs.

    Attributes:
        executor_id: Unique among members.
        limits: Size of a batch.
        credit_batches: Batches' worth of tokens that streams together may have submitted, for each
            batch that computes at once.
        max_in_flight: Batches launched ahead of the outputs read (CUDA).
        num_workers: Batches that compute at once, each on a thread of its own (CPU).
        drain_s: How long unanswered items may finish when stopping.
        reach: Failpoints.
    """

    executor_id: str
    limits: Limits
    credit_batches: float = 3.0
    max_in_flight: int = 1
    num_workers: int = 0
    drain_s: float = 5.0
    reach: Reach = off


class Executor:
    """The running parts, from the block's beginning to its end. Belongs to the event loop.

    Args:
        options: How it runs.
        on_failure: Called if the engine ends by a defect: the process must be replaced.
        observe: As in Engine.
    """

    def __init__(
        self,
        options: Options,
        on_failure: Callable[[], None] = lambda: None,
        observe: Observe = lambda _part: None,
    ) -> None:
        num_at_once = max(1, options.num_workers)
        window = int(options.credit_batches * options.limits.max_tokens * num_at_once)
        self.bases: dict[str, LoadedBase] = {}
        self._options = options
        self._pool = CreditPool(window, parked_tokens=window)
        self._admission = Admission(self.bases)
        self.dispatcher = Dispatcher(
            self.bases,
            options.limits,
            max_in_flight=options.max_in_flight,
            num_workers=options.num_workers,
            reach=options.reach,
            on_failure=on_failure,
            observe=observe,
        )
        self.servicer = ExecutorServicer(options.executor_id, self._open_session, self._snapshot)

    async def __aenter__(self) -> Executor:
        self.dispatcher.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.stop()

    def add(self, base: LoadedBase) -> None:
        """Serve a base from now on."""
        self.bases[base.digest] = base
        self._pool.fit(base.max_tokens)
        self.servicer.flush()

    async def remove(self, digest: str) -> bool:
        """Serve a base no longer and give its memory back; False, and no change, while it is used.

        It is gone from the device once the caller has let go of it too.
        """
        if self.dispatcher.is_used(digest):
            return False
        base = self.bases.pop(digest)
        await asyncio.to_thread(base.close)
        return True

    def pin(self, keys: frozenset[ModelKey]) -> None:
        """Keep these models' adapters resident, and no others."""
        for digest, base in self.bases.items():
            base.adapters.pin(frozenset(key for key in keys if key.base_digest == digest))

    def forget(self, key: ModelKey) -> None:
        """Drop a deleted version from memory once no batch uses it."""
        base = self.bases.get(key.base_digest)
        if base is not None:
            base.adapters.forget(key)

    def swap_tables(self, base_digest: str, old_version: str, new_version: str) -> None:
        """Bring in what took the place of tables that are read here: items will name it soon."""
        base = self.bases.get(base_digest)
        if base is not None and base.split is not None and base.split.tables.is_ready(old_version):
            base.split.tables.prefetch(new_version)

    @property
    def held_blobs(self) -> frozenset[str]:
        """Digests of the versions and tables held in any tier."""
        return frozenset().union(*(base.held_blobs() for base in self.bases.values()))

    async def stop(self) -> None:
        """Refuse new items, answer what is here, then end streams and the engine."""
        self.servicer.refuse()
        self.dispatcher.is_stopping = True
        await self.dispatcher.drain(self._options.drain_s)
        await self.dispatcher.stop()
        for base in self.bases.values():
            await asyncio.to_thread(base.close)
        await asyncio.sleep(0)  # lets the engine's last events reach their streams
        self.servicer.end()

    def _open_session(self) -> Session:
        return Session(self.dispatcher, self._admission, self._pool, self._options.reach)

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            frozenset(self.bases),
            self.dispatcher.num_tokens,
            frozenset().union(*(base.adapters.resident_digests() for base in self.bases.values())),
        )
