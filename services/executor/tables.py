"""A split base's tables as the engine wants them: versions lent, rows retrieved.

Joins store and retriever; does not know formats, budgets or batches.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.tables import Retrieved, Source
from services.executor.plot.retrieve import Retriever, RowSource
from services.executor.plot.store import TableStore

logger = logging.getLogger(__name__)

REFRESH_S = 60.0


class SplitTables:
    """Implements `engine.tables.Tables`."""

    def __init__(self, store: TableStore, retriever: Retriever) -> None:
        self._store = store
        self._retriever = retriever
        self.prefetch = store.prefetch
        self.is_ready = store.is_ready
        self.acquire = store.acquire
        self.release = store.release
        self.held_blobs = store.held_blobs
        self.refresh = store.refresh_hot
        self.close = store.close

    def retrieve(
        self, token_ids: NDArray[np.int64], lengths: Sequence[int], sources: Sequence[Source]
    ) -> Retrieved:
        """As `Tables.retrieve`."""
        rows = [RowSource(source.table, source.tenant) for source in sources]
        return self._retriever.retrieve(token_ids, lengths, rows)


async def keep_near(bases: Mapping[str, LoadedBase]) -> None:
    """Choose anew, for ever, which rows of the bases' tables lie in fast memory."""
    while True:
        await asyncio.sleep(REFRESH_S)
        for base in list(bases.values()):
            if base.split is None:
                continue
            try:
                await asyncio.to_thread(base.split.tables.refresh)
            except Exception:  # of the device: rows stay where they are, and are found there
                logger.exception("hot rows were not chosen anew", extra={"base": base.name})
