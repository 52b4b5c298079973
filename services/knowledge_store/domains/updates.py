"""Updates from their plan to their end: asked for, scheduled, committed, given up.

Knows when things are tried again; what is done is `planner`'s and `work`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time

from services.common.errors import Aborted, FailedPrecondition, HmiError
from services.common.failpoints import Reach
from services.knowledge_store import metrics
from services.knowledge_store.domains.options import DomainOptions
from services.knowledge_store.domains.planner import Planner
from services.knowledge_store.domains.records import get_all_work
from services.knowledge_store.domains.work import Work
from services.knowledge_store.frequency import Frequencies, Stream
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import BASES, DOMAINS, TENANTS
from services.knowledge_store.metadata.transaction import Transaction
from services.knowledge_store.tree import OrderChange

logger = logging.getLogger(__name__)

_ROUND_S = 1.0
_JITTER = 0.1


class Updates:
    """All trees' updates."""

    def __init__(
        self,
        database: Database,
        planner: Planner,
        work: Work,
        frequencies: Frequencies,
        options: DomainOptions,
        *,
        reach: Reach,
    ) -> None:
        self._database = database
        self._planner = planner
        self._work = work
        self._frequencies = frequencies
        self._options = options
        self._reach = reach
        self._next_update = self._in_an_interval()

    async def update(
        self, base: str, path: str, *, is_dry_run: bool, is_scheduled: bool = False
    ) -> tuple[str, list[OrderChange]]:
        """As `Planner.update`; one that needs no rows is committed at once.

        Raises:
            NotFound, FailedPrecondition, Aborted, ResourceExhausted: As `Planner.update`.
        """
        update_id, changes = await self._planner.update(
            base, path, is_dry_run=is_dry_run, is_scheduled=is_scheduled
        )
        if update_id:
            self._reach("after_plan", 1)
            await self._work.commit_written()
        return update_id, changes

    async def run(self) -> None:
        """Bring updates to their end, for ever; what fails is tried at the next round."""
        while True:
            try:
                await self._round()
            except HmiError as error:
                logger.warning("domain updates put off", extra={"error": error.message})
            await asyncio.sleep(_ROUND_S)

    async def _round(self) -> None:
        await self._work.commit_written()
        await self._work.give_up()
        await self._tidy()
        if self._options.update_interval_s and time.monotonic() >= self._next_update:
            self._next_update = self._in_an_interval()
            await self._update_all()

    async def _tidy(self) -> None:
        """Forget counts of domains and tenants that are gone, or that no longer share."""

        async def read(transaction: Transaction) -> None:
            nodes = {(node.base, node.path): node for node in await transaction.all(DOMAINS)}
            sharing = {t.name for t in await transaction.all(TENANTS) if t.shares_counts}

            def is_kept(stream: Stream) -> bool:
                node = nodes[stream.base, stream.path]
                return stream.tenant == node.tenant or stream.tenant in sharing

            self._frequencies.retain(nodes.keys(), is_kept)
            metrics.domains.set(len(nodes))
            work = await get_all_work(transaction)
            metrics.domain_work.set(sum(piece.segments is None for piece in work))

        await self._database.change(read)

    async def _update_all(self) -> None:
        bases = await self._database.change(lambda transaction: transaction.all(BASES))
        for base in bases:
            if not base.HasField("split"):
                continue
            try:
                await self.update(base.name, "", is_dry_run=False, is_scheduled=True)
            except (FailedPrecondition, Aborted) as error:
                # Its last update is not done yet, or an admin was faster.
                logger.info("a scheduled update is left out", extra={"error": error.message})

    def _in_an_interval(self) -> float:
        """When the next scheduled update begins, monotonic seconds."""
        interval_s = self._options.update_interval_s
        return time.monotonic() + interval_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 no secret
