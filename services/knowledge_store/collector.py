"""Deletes blobs that nothing holds any more, and uploads that nobody resumes.

Knows who may hold a blob: a base, a version, a domain's tables, a member's lease, or whoever
just wrote or asked for it. Does not know what blobs hold.
"""

from __future__ import annotations

import asyncio
import logging
import time

from services.common.errors import Unavailable
from services.common.failpoints import Reach, off
from services.knowledge_store import metrics
from services.knowledge_store.blobs import BlobDirectory, now
from services.knowledge_store.domains.holding import Manifests, domain_blobs
from services.knowledge_store.leases import Leases
from services.knowledge_store.metadata.database import Database

logger = logging.getLogger(__name__)


class Collector:
    """Collects from time to time.

    A blob goes when, for `grace_s` seconds on end, no base, version, domain or lease held it and
    nobody asked for it. The time begins anew with the process, since leases name their blobs again
    only after a restart.

    Args:
        reach: Called at the failpoints.
    """

    def __init__(
        self,
        database: Database,
        blobs: BlobDirectory,
        leases: Leases,
        *,
        interval_s: float,
        grace_s: float,
        upload_age_s: float,
        reach: Reach = off,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._manifests = Manifests(blobs)
        self._leases = leases
        self._interval_s = interval_s
        self._grace_s = grace_s
        self._upload_age_s = upload_age_s
        self._reach = reach
        # sha256 -> monotonic time since when every sweep found it unheld.
        self._unheld_since: dict[str, float] = {}

    async def run(self) -> None:
        """Sweep for ever; a Redis that is away or a disk error puts it off to the next time."""
        while True:
            await asyncio.sleep(self._interval_s)
            try:
                await self.sweep()
            except (Unavailable, OSError):
                logger.warning("collection put off", exc_info=True)

    async def sweep(self) -> int:
        """Delete what has been unheld for the grace; returns the number of blobs deleted."""
        num_uploads = await self._blobs.delete_uploads(older_than=now() - self._upload_age_s)
        # Blobs are listed before references are read: one that is referenced later was asked for
        # in between, under the lock of changes, and so is too young to be deleted below.
        files = await self._blobs.list()
        held = await self._referenced() | self._leases.held_blobs()
        damaged = {blob.sha256 for blob in await self._blobs.damaged()}
        await self._blobs.forget_damaged(damaged - held)
        at = time.monotonic()
        self._unheld_since = {
            file.sha256: self._unheld_since.get(file.sha256, at)
            for file in files
            if file.sha256 not in held
        }
        num_blobs = 0
        for sha256, since in self._unheld_since.items():
            if at - since >= self._grace_s and await self._delete(sha256):
                num_blobs += 1
        if num_blobs or num_uploads:
            metrics.blobs_collected_total.inc(num_blobs)
            logger.info("collected", extra={"num_blobs": num_blobs, "num_uploads": num_uploads})
        return num_blobs

    async def _delete(self, sha256: str) -> bool:
        async with self._database.unchanging():
            if sha256 in self._leases.held_blobs():
                return False
            self._reach("before_delete", 1)
            is_deleted = await self._blobs.delete(sha256, unused_since=now() - self._grace_s)
            if is_deleted:
                self._reach("after_delete", 1)
            return is_deleted

    async def _referenced(self) -> set[str]:
        """sha256 of every blob of a base, a version or a domain."""
        referenced = await self._database.change(domain_blobs)
        manifests: set[str] = set()
        _, changes = await self._database.snapshot()
        for change in changes:
            if change.HasField("version"):
                referenced.add(change.version.digest)
                if not change.version.follow:
                    manifests.add(change.version.table_version)
            elif change.HasField("domain"):
                manifests.add(change.domain.table_version)
            elif change.HasField("base"):
                referenced.update(file.sha256 for file in change.base.files)
        return referenced | manifests | await self._manifests.blobs(manifests - {""})
