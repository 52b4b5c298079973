"""Computes rows on the engine's thread, in pieces so short that no batch waits long.

Knows an encoder, keys and time; does not know what the rows are for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial

import numpy as np
import torch
from prometheus_client import Counter, Histogram

from services.common.errors import Cancelled
from services.common.ngrams import IntArray
from services.executor.engine.tables import RowEncoder
from services.executor.plot.segment import HalfArray

# A piece's time is what a batch that comes at the wrong moment waits beside its own.
PIECE_S = 0.02
MIN_KEYS = 64  # a local encoder computes so many at a time
MAX_KEYS = 1 << 14
_LOOK_S = 0.1

piece_seconds = Histogram(
    "hmi_work_piece_seconds",
    "Time that a piece of materialisation takes of the engine's thread, in seconds.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.25, 1),
)
rows_total = Counter("hmi_work_rows_total", "Rows materialised for tables.")

RunAside = Callable[[Callable[[], HalfArray]], "Future[HalfArray]"]


class Rows:
    """Rows of one encoder, on demand. Called on a thread that may wait.

    Args:
        encoder: Makes them.
        run_aside: Runs a piece on the engine's thread when there is room for it.
    """

    def __init__(self, encoder: RowEncoder, run_aside: RunAside) -> None:
        self._encoder = encoder
        self._run_aside = run_aside
        self._num_keys = MIN_KEYS
        self._stopped = threading.Event()

    @property
    def shape(self) -> tuple[int, int]:
        """slots, hidden."""
        return self._encoder.num_slots, self._encoder.hidden_size

    def stop(self) -> None:
        """Let whoever waits for rows get Cancelled. Any thread."""
        self._stopped.set()

    def __call__(self, keys: IntArray) -> HalfArray:
        """float16 `[n, slots, hidden]` of int64 `[n]`.

        Raises:
            Cancelled: It was stopped, or the engine has.
            Exception: What the encoder raises.
        """
        rows = np.empty((len(keys), *self.shape), np.float16)
        first = 0
        while first < len(keys):
            part = keys[first : first + self._num_keys]
            piece = self._run_aside(partial(self._piece, part))
            rows[first : first + len(part)] = self._wait(piece)
            first += len(part)
        return rows

    def _wait(self, future: Future[HalfArray]) -> HalfArray:
        while not self._stopped.is_set():
            try:
                return future.result(_LOOK_S)
            except TimeoutError:
                continue
            except CancelledError:
                break
        future.cancel()
        raise Cancelled("materialising was stopped")

    def _piece(self, keys: IntArray) -> HalfArray:
        """On the engine's thread: a piece, and what its time says of the next one's size."""
        started = time.perf_counter()
        rows: HalfArray = self._encoder.rows(torch.from_numpy(keys.copy())).cpu().numpy()
        took = time.perf_counter() - started
        piece_seconds.observe(took)
        rows_total.inc(len(keys))
        fitting = int(len(keys) * PIECE_S / max(took, 1e-6))
        grown = min(fitting, 2 * self._num_keys, MAX_KEYS)
        self._num_keys = max(MIN_KEYS, grown // MIN_KEYS * MIN_KEYS)
        return rows
