"""The table versions of one split base: loaded when asked for, lent to batches, dropped when idle.

A new table version is a new name: batches that acquired the old one keep it, later ones acquire the
new one, and nothing is ever changed under a reader. That is the whole of a swap.

Knows versions, budgets and who uses what; does not know formats, batches or models.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from services.common.errors import (
    HmiError,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from services.executor.adapters.metrics import DEVICE_BYTES
from services.executor.failpoints import Reach, off
from services.executor.plot import metrics
from services.executor.plot.coalesce import Coalesced
from services.executor.plot.index import KEY_BYTES
from services.executor.plot.loaded import LoadedTables
from services.executor.plot.loader import TableLoader
from services.executor.plot.manifest import Manifest
from services.executor.plot.table import Table
from services.executor.plot.tier import HotTier

logger = logging.getLogger(__name__)

_NUM_THREADS = 2
_RETRY_S = 5.0  # a version that failed is not tried again before
_AWAY_S = 0.5  # nor before this, if the knowledge store was away: clients wait for its restart
_MAX_ERRORS = 1024
# What is wrong with the blobs themselves a retry seldom mends, but nothing is known for ever.
_PERMANENT = (InvalidArgument, ResourceExhausted)
_PERMANENT_S = 300.0


@dataclass(slots=True)
class _Loading:
    """A table on its way in.

    Attributes:
        blobs: What it will hold, as soon as that is known.
        is_claimed: Somebody waits for it; otherwise it is a hint.
    """

    blobs: frozenset[str] = field(default_factory=frozenset)
    is_claimed: bool = False


@dataclass(frozen=True, slots=True)
class _Failure:
    error: HmiError
    until: float  # in time.monotonic() seconds


class TableStore:
    """Loads, keeps and lends tables. Methods may be called from any thread; none waits for a load.

    Args:
        loader: Makes tables.
        host_bytes: Memory for indexes. Tables in use are never dropped, so that their memory may
            exceed it for the time of a batch; a table that could never fit is refused.
        tier: Chooses hot rows, within a budget of its own.
        idle_s: A version that no batch used for so long is dropped when hot rows are next chosen.
        on_change: Called from a loading thread after a load has ended, well or not.
        name: The base, in metrics.
        reach: Called at the failpoints.
    """

    def __init__(
        self,
        loader: TableLoader,
        *,
        host_bytes: int,
        tier: HotTier,
        idle_s: float = 300.0,
        on_change: Callable[[], None] | None = None,
        name: str = "",
        reach: Reach = off,
    ) -> None:
        self._loader = loader
        self._host_bytes = host_bytes
        self._tier = tier
        self._idle_s = idle_s
        self._on_change = on_change or (lambda: None)
        self._name = name
        self._reach = reach
        self._lock = threading.Lock()
        self._choosing = threading.Lock()
        self._loaded = LoadedTables()
        self._loading: dict[str, _Loading] = {}
        self._failures: OrderedDict[str, _Failure] = OrderedDict()
        self._is_closed = False
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="table-load")
        self._refreshing = Coalesced(self.refresh_hot, "table-hot")

    def close(self) -> None:
        """Stop loading. Tables in use stay usable."""
        with self._lock:
            self._is_closed = True
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._refreshing.close()
        metrics.forget(self._name)
        DEVICE_BYTES.remove(self._name, "tables")

    def prefetch(self, version: str) -> None:
        """Begin to load unless it is loaded or loading."""
        with self._lock:
            if self._failure(version) is None:
                self._request(version)

    def is_ready(self, version: str) -> bool:
        """Whether it can be acquired at this moment."""
        with self._lock:
            return version in self._loaded

    def acquire(self, version: str) -> Table | None:
        """Lend the table until `release`. None if it is not loaded yet; it is then loaded.

        Raises:
            HmiError: It could not be loaded. Asking again seconds later tries again, or minutes
                later if the blobs themselves are wrong.
        """
        with self._lock:
            table = self._loaded.lend(version)
            if table is not None:
                return table
            failure = self._failure(version)
            if failure is not None:
                raise failure.error.fresh()
            self._request(version)
            if (loading := self._loading.get(version)) is not None:
                loading.is_claimed = True
            return None

    def release(self, table: Table) -> None:
        """End one `acquire`.

        Raises:
            Internal: Nobody had acquired it.
        """
        with self._lock:
            self._loaded.take_back(table)
            self._evict()

    def drop_idle(self, idle_s: float) -> None:
        """Drop versions that no batch used for so long, so that their blobs may be collected. They
        come back when they are asked for."""
        until = time.monotonic() - idle_s
        with self._lock:
            while (idle := self._loaded.longest_idle()) is not None and idle[1] <= until:
                self._loaded.drop(idle[0])
            self._observe()

    def versions(self) -> frozenset[str]:
        """Versions that are loaded."""
        with self._lock:
            return frozenset(table.version for table in self._loaded)

    def held_blobs(self) -> frozenset[str]:
        """Digests of all blobs that loaded tables and those on their way in are made of: who
        collects blobs must leave them."""
        with self._lock:
            held = {
                blob for table in self._loaded for blob in _blobs_of(table.version, table.manifest)
            }
            for version, loading in self._loading.items():
                held |= {version, *loading.blobs}
            return frozenset(held)

    def refresh_hot(self) -> None:
        """Drop what is idle, and choose hot rows anew by what was used since the last time. Slow:
        not for event loops. A load has it done soon, once for all loads meanwhile."""
        self.drop_idle(self._idle_s)
        with self._choosing:
            with self._lock:
                nodes = self._loaded.nodes
            self._tier.choose(nodes)
        if self._is_closed:
            return
        num_hot, size_bytes = sum(len(n.hot) for n in nodes), sum(n.hot.size_bytes for n in nodes)
        metrics.ROWS.labels(self._name, "hot").set(num_hot)
        DEVICE_BYTES.labels(self._name, "tables").set(size_bytes)

    def _failure(self, version: str) -> _Failure | None:
        failure = self._failures.get(version)
        if failure is not None and failure.until < time.monotonic():
            del self._failures[version]
            return None
        return failure

    def _request(self, version: str) -> None:
        if not self._is_closed and version not in self._loaded and version not in self._loading:
            self._loading[version] = _Loading()
            self._threads.submit(self._load, version)

    def _load(self, version: str) -> None:
        """Runs on a loading thread."""
        started = time.perf_counter()
        is_new = False
        try:
            table = self._make(version)
            self._reach("before_swap", 1)
            is_new = self._publish(version, table)
            self._reach("after_swap", 1)
        except HmiError as error:
            self._fail(version, error)
        except Exception:  # a defect of ours must not leave who waits without an answer
            logger.exception("a table could not be loaded", extra={"table_version": version})
            self._fail(version, Internal("a table could not be loaded"))
        metrics.LOAD_SECONDS.observe(time.perf_counter() - started)
        self._on_change()
        if is_new:
            self._refreshing.ask()

    def _make(self, version: str) -> Table:
        manifest = self._loader.manifest(version)
        least = KEY_BYTES * max(
            sum(segment.num_entries for segment in node.segments if not segment.is_removal)
            - sum(segment.num_entries for segment in node.segments if segment.is_removal)
            for node in manifest.nodes
        )
        if least > self._host_bytes:
            raise ResourceExhausted(
                f"the index of table version {version} takes {least} bytes; "
                f"the executor has {self._host_bytes}",
                subject="executor/host_table_bytes",
            )
        with self._lock:
            self._loading[version].blobs = _blobs_of(version, manifest)
        return self._loader.table(version, manifest)

    def _publish(self, version: str, table: Table) -> bool:
        """Make a table known; whether it has a node whose rows were never chosen from."""
        with self._lock:
            self._loaded.add(table, is_claimed=self._loading.pop(version).is_claimed)
            self._evict(keep=version)
        return any(len(node) and node.hot.uses is None for node in table.nodes)

    def _fail(self, version: str, error: HmiError) -> None:
        with self._lock:
            self._loading.pop(version, None)
            self._failures[version] = _Failure(error.fresh(), time.monotonic() + _wait_s(error))
            while len(self._failures) > _MAX_ERRORS:
                self._failures.popitem(last=False)

    def _evict(self, keep: str = "") -> None:
        """Drop tables nobody uses, the longest idle first, until the rest fits."""
        while self._loaded.size_bytes > self._host_bytes:
            idle = self._loaded.longest_idle()
            if idle is None or idle[0] == keep:
                break
            self._loaded.drop(idle[0])
        self._observe()

    def _observe(self) -> None:
        """What changes as tables come and go; hot rows are observed as they are chosen."""
        if self._is_closed:
            return
        metrics.TABLES.labels(self._name).set(len(self._loaded))
        metrics.ROWS.labels(self._name, "mapped").set(self._loaded.num_rows)
        metrics.HOST_BYTES.labels(self._name).set(self._loaded.size_bytes)


def _wait_s(error: HmiError) -> float:
    """How long a failed load is not tried again, in seconds."""
    if isinstance(error, Unavailable):
        return _AWAY_S
    return _PERMANENT_S if isinstance(error, _PERMANENT) else _RETRY_S


def _blobs_of(version: str, manifest: Manifest) -> frozenset[str]:
    segments = (segment.sha256 for segment in manifest.segments)
    encoders = (node.encoder_sha256 for node in manifest.nodes)
    return frozenset((version, *segments, *encoders))
