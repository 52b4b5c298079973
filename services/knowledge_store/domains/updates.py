"""Updates from their plan to their end: asked for, scheduled, committed, given up.

Knows when things are tried again; what is done is `planner`'s and `work`'s.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from services.common.errors import HmiError
from services.common.failpoints import Reach
from services.knowledge_store.domains.options import DomainOptions
from services.knowledge_store.domains.planner import Planner
from services.knowledge_store.domains.repairs import Repairs
from services.knowledge_store.domains.work import Work
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import BASES
from services.knowledge_store.tree import OrderChange

logger = logging.getLogger(__name__)

_ROUND_S = 1.0
_TIDY_S = 5.0
_JITTER = 0.1


class Updates:
    """All trees' updates.

    Args:
        tidy: Forgets the counts that may shape nothing any more.
    """

    def __init__(
        self,
        database: Database,
        planner: Planner,
        work: Work,
        repairs: Repairs,
        tidy: Callable[[], Awaitable[None]],
        options: DomainOptions,
        *,
        reach: Reach,
    ) -> None:
        self._database = database
        self._planner = planner
        self._work = work
        self._repairs = repairs
        self._tidy = tidy
        self._options = options
        self._reach = reach
        self._next_update = self._in_an_interval()
        self._next_tidy = 0.0

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
        is_put_off = False
        while True:
            try:
                await self._round()
                is_put_off = False
            except HmiError as error:
                if not is_put_off:
                    logger.warning("domain updates put off", extra={"error": error.message})
                is_put_off = True
            await asyncio.sleep(_ROUND_S)

    async def _round(self) -> None:
        await self._work.commit_written()
        await self._work.give_up()
        await self._repairs.round()
        if time.monotonic() >= self._next_tidy:
            self._next_tidy = time.monotonic() + _TIDY_S
            await self._tidy()
        if self._options.update_interval_s and time.monotonic() >= self._next_update:
            self._next_update = self._in_an_interval()
            await self._update_all()

    async def _update_all(self) -> None:
        bases = await self._database.change(lambda transaction: transaction.all(BASES))
        for base in bases:
            if not base.HasField("split"):
                continue
            try:
                await self.update(base.name, "", is_dry_run=False, is_scheduled=True)
            except HmiError as error:
                # Its last update is not done yet, or it is damaged: other trees go on.
                facts = {"base": base.name, "error": error.message}
                logger.warning("a scheduled update is left out", extra=facts)

    def _in_an_interval(self) -> float:
        """When the next scheduled update begins, monotonic seconds."""
        interval_s = self._options.update_interval_s
        return time.monotonic() + interval_s * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 no secret
