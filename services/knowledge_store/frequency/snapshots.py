"""Keeps the counts over restarts: one file, replaced from time to time.

Knows the file; does not know what is counted. Counts and the sequences they came with are in one
file that appears at once: after a crash the last seconds are missing, but what is there was counted
once, and what an executor sends again is counted once.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from services.knowledge_store.frequency.frequencies import Frequencies, State, Stream
from services.knowledge_store.frequency.sketch import Sketch

logger = logging.getLogger(__name__)

_FORMAT = "hmi.frequencies/1"
# Writing takes at most this share of the time.
_MAX_DUTY = 0.05


class Snapshots:
    """The file of one store.

    Args:
        path: The file; `path.damaged` keeps one that could not be read.
        interval_s: Time between writes, if there is news.
    """

    def __init__(self, path: Path, *, interval_s: float) -> None:
        self._path = path
        self._interval_s = interval_s
        self._written = 0

    def load(self) -> State:
        """What was written last; nothing if there is none or it is damaged: counts grow again."""
        if not self._path.exists():
            return State()
        try:
            return _read(self._path)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, KeyError, TypeError):
            damaged = self._path.with_suffix(".damaged")
            self._path.replace(damaged)
            logger.exception("n-gram counts are damaged; they begin anew", extra={
                "kept_as": str(damaged)})  # fmt: skip
            return State()

    async def run(self, frequencies: Frequencies) -> None:
        """Write for ever, also once more when cancelled. A full disk puts it off."""
        wait_s = self._interval_s
        try:
            while True:
                await asyncio.sleep(wait_s)
                began = time.monotonic()
                await asyncio.to_thread(self.write, frequencies)
                wait_s = max(self._interval_s, (time.monotonic() - began) / _MAX_DUTY)
        finally:
            self.write(frequencies)

    def write(self, frequencies: Frequencies) -> None:
        """Replace the file if there is news."""
        number = frequencies.num_changes
        if number == self._written:
            return
        try:
            _write(self._path, frequencies.snapshot())
        except OSError:
            logger.warning("n-gram counts could not be written", exc_info=True)
            return
        self._written = number


def _write(path: Path, state: State) -> None:
    sketches = [sketch for sketch, _ in state.sketches.values()]
    described = {
        "format": _FORMAT,
        "streams": [
            [stream.base, stream.path, stream.tenant, len(sketch.keys), sketch.num_tokens,
             sketch.error, clock]
            for stream, (sketch, clock) in state.sketches.items()
        ],
        "clocks": [[base, at, clock] for (base, at), clock in state.clocks.items()],
        "births": [[base, at, born] for (base, at), born in state.births.items()],
        "seen": [[executor, epoch, last] for (executor, epoch), last in state.seen.items()],
    }  # fmt: skip
    keys = np.concatenate([np.empty(0, np.int64), *(s.keys for s in sketches)])
    weights = np.concatenate([np.empty(0), *(s.weights for s in sketches)])
    partial = path.with_suffix(".part")
    with partial.open("wb") as file:
        text = np.frombuffer(json.dumps(described).encode(), np.uint8)
        np.savez(file, described=text, keys=keys, weights=weights)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read(path: Path) -> State:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        described = json.loads(file["described"].tobytes())
        if described["format"] != _FORMAT:
            raise ValueError(f"format {described['format']!r}")
        keys, weights = file["keys"], file["weights"]
    state = State(
        clocks={(base, at): float(clock) for base, at, clock in described["clocks"]},
        seen=OrderedDict(((executor, epoch), last) for executor, epoch, last in described["seen"]),
        # Files of before births were kept name none: their counts are whose path it is now.
        births={(base, at): int(born) for base, at, born in described.get("births", [])},
    )
    start = 0
    for base, at, tenant, num_keys, num_tokens, error, clock in described["streams"]:
        part = slice(start, start + num_keys)
        start += num_keys
        sketch = Sketch(keys[part], weights[part], num_tokens, error)
        state.sketches[Stream(base, at, tenant)] = (sketch, clock)
    if start != len(keys) or len(keys) != len(weights):
        raise ValueError("keys and streams disagree")
    return state
