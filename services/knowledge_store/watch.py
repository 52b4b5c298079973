"""Sends a snapshot and then every change to whoever watches.

Knows revisions; does not know what changes mean. One task follows the log and tells all watchers
that it grew; each reads it from where it is. A slow watcher therefore costs no memory: it falls
behind, and when the log no longer reaches back to it, it gets a snapshot again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import Unavailable
from services.knowledge_store import metrics
from services.knowledge_store.metadata.database import Database

logger = logging.getLogger(__name__)

# What ends a piece of a snapshot: one version may hold labels of most of a megabyte.
_PIECE_CHANGES = 500
_PIECE_BYTES = 1 << 20
_READ_REVISIONS = 16
_RETRY_S = 0.2
# Short, since it is waited for when the store stops.
_POLL_S = 0.2


class Watches:
    """The watches of one store.

    Args:
        database: Whose changes are watched.
        sign_of_life_s: Longest silence.
    """

    def __init__(self, database: Database, *, sign_of_life_s: float) -> None:
        self._database = database
        self._sign_of_life_s = sign_of_life_s
        self._revision = 0
        self._is_away = False
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Follow the log, for ever."""
        while True:
            try:
                revision = await self._database.wait_for_change(self._revision, timeout_s=_POLL_S)
            except Unavailable:
                self._tell(self._revision, is_away=True)
                await asyncio.sleep(_RETRY_S)
            else:
                if revision != self._revision or self._is_away:
                    self._tell(revision, is_away=False)

    async def watch(self, from_revision: int) -> AsyncIterator[pb.WatchResponse]:
        """Every change after `from_revision`; a snapshot first if that is 0 or not in the log.

        Raises:
            Unavailable: Redis is away; watch again from the last revision seen.
        """
        metrics.watchers.inc()
        try:
            revision = from_revision
            needs_snapshot = revision == 0
            # Who resumes at the latest revision is told so at once.
            is_first = not needs_snapshot
            while True:
                if needs_snapshot:
                    revision, changes = await self._database.snapshot()
                    for piece in _pieces(revision, changes):
                        yield piece
                # Taken before the log is read: what comes after the read sets it.
                news = self._news
                responses = await self._database.changes_after(revision, limit=_READ_REVISIONS)
                needs_snapshot = responses is None
                for response in responses or ():
                    yield response
                    revision = response.revision
                if responses == [] and (is_first or not await self._comes(news)):
                    yield pb.WatchResponse(revision=revision)
                is_first = False
        finally:
            metrics.watchers.dec()

    async def _comes(self, news: asyncio.Event) -> bool:
        """Wait for news; False if it is time for a sign of life instead."""
        try:
            async with asyncio.timeout(self._sign_of_life_s):
                await news.wait()
        except TimeoutError:
            return False
        if self._is_away:
            raise Unavailable(
                "the metadata cannot be reached: watch again from the last revision seen",
                reason="REDIS_UNAVAILABLE",
                retry_after_s=0.5,
            )
        return True

    def _tell(self, revision: int, *, is_away: bool) -> None:
        if is_away != self._is_away:
            logger.warning("redis is away" if is_away else "redis is back")
        self._revision, self._is_away = revision, is_away
        metrics.revision.set(revision)
        news, self._news = self._news, asyncio.Event()
        news.set()


def _pieces(revision: int, changes: list[pb.Change]) -> Iterator[pb.WatchResponse]:
    """A snapshot in messages. Only the last names the revision, for only then is it all there."""
    piece = pb.WatchResponse(is_snapshot=True)
    num_bytes = 0
    for change in changes:
        size = change.ByteSize()
        is_full = len(piece.changes) == _PIECE_CHANGES or num_bytes + size > _PIECE_BYTES
        if is_full and piece.changes:
            yield piece
            piece, num_bytes = pb.WatchResponse(is_snapshot=True), 0
        piece.changes.append(change)
        num_bytes += size
    piece.revision, piece.is_snapshot_end = revision, True
    yield piece
