"""Work on updates: given out, renewed, completed, and in the end committed or given up.

Knows leases and what completes an update; does not know how rows were chosen. Who holds what work
is in Redis, so that a restart of the store loses no work under way; until when is in memory, as
renewals come often: after a restart every lease begins anew. An update is as old as what was last
heard of its work, and time when there was no store does not count.

A node is in one update at a time, and nothing else changes its rows meanwhile: what an update was
planned from still holds when it is committed.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection, Sequence

import numpy as np

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as pb
from services.common.errors import Aborted, FailedPrecondition, InvalidArgument
from services.common.failpoints import Reach
from services.common.ids import check_sha256
from services.knowledge_store import metrics
from services.knowledge_store.domains import endings
from services.knowledge_store.domains.key_blobs import FORM_NAMES, NUM_SLOTS, KeyBlobs, SegmentKind
from services.knowledge_store.domains.naming import change_versions
from services.knowledge_store.domains.options import DomainOptions
from services.knowledge_store.domains.records import (
    SegmentRecord,
    Update,
    WorkRecord,
    get_all_work,
    get_update,
    get_updates,
    get_work,
    put_update,
    put_work,
)
from services.knowledge_store.domains.tables import Tree, split_base
from services.knowledge_store.metadata.bases import BlobSizes
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.transaction import Transaction

logger = logging.getLogger(__name__)

_MAX_ID_CHARACTERS = 128
_MAX_SEGMENTS = 64


class Work:
    """All updates' work.

    Args:
        reach: Called at the failpoints.
        request_id_ttl_s: How long a completion that was answered is answered the same again.
    """

    def __init__(
        self,
        database: Database,
        key_blobs: KeyBlobs,
        blob_sizes: BlobSizes,
        options: DomainOptions,
        *,
        reach: Reach,
        request_id_ttl_s: int,
    ) -> None:
        self._database = database
        self._key_blobs = key_blobs
        self._blob_sizes = blob_sizes
        self._options = options
        self._reach = reach
        self._request_id_ttl_s = request_id_ttl_s
        # Work id -> until when (monotonic seconds) it is whose it is.
        self._deadlines: dict[str, float] = {}
        self._begin_time_s = time.time()

    async def lease(
        self, executor_id: str, base_digests: Collection[str], work_id: str
    ) -> pb.Work | None:
        """Work for an executor, or its renewed lease of `work_id`; None if there is none.

        Raises:
            InvalidArgument: A field.
        """
        if not 0 < len(executor_id) <= _MAX_ID_CHARACTERS:
            raise InvalidArgument("executor_id", f"1 to {_MAX_ID_CHARACTERS} characters")
        for position, digest in enumerate(base_digests):
            check_sha256(f"base_digests[{position}]", digest)

        async def lease(transaction: Transaction) -> WorkRecord | None:
            if work_id:
                held = await get_work(transaction, work_id)
                if held is None or held.executor_id != executor_id or held.segments is not None:
                    return None
                await self._note_progress(transaction, held, within_s=self._options.work_lease_s)
                return held
            work = [w for w in await get_all_work(transaction) if w.base_digest in base_digests]
            for piece in work:
                if piece.segments is None and not self._is_held(piece) and self._may_try(piece):
                    token = uuid.uuid4().hex
                    tries = piece.tries + 1
                    given = {"executor_id": executor_id, "token": token, "tries": tries}
                    leased = piece.model_copy(update=given)
                    put_work(transaction, leased)
                    await self._note_progress(transaction, leased)
                    return leased
            return None

        leased = await self._database.change(lease)
        if leased is None:
            return None
        self._deadlines[leased.work_id] = time.monotonic() + self._options.work_lease_s
        self._reach("after_lease", 1)
        return leased.to_pb(lease_ms=int(self._options.work_lease_s * 1_000))

    async def complete(
        self, work_id: str, token: str, expected_version: int, segments: Sequence[rpb.Segment]
    ) -> bool:
        """Take written segments; returns whether that committed the update.

        Raises:
            InvalidArgument: The segments do not hold the rows asked for.
            FailedPrecondition: A segment's blob is missing.
            Aborted: The lease went to another, or the update was rolled back.
            ResourceExhausted: The disk is full; complete it again later.
        """
        written = [SegmentRecord.from_pb(segment) for segment in segments]
        work = await self._database.change(lambda t: self._leased(t, work_id, token))
        if isinstance(work, bool):
            return work
        if expected_version != work.expected_version:
            raise Aborted(f"the update began from version {work.expected_version}")
        await self._check_segments(work, written)

        async def complete(transaction: Transaction) -> None:
            held = await self._leased(transaction, work_id, token)
            if isinstance(held, bool):
                return
            sizes = await self._blob_sizes(segment.sha256 for segment in written)
            for segment in written:
                if sizes.get(segment.sha256) != segment.size_bytes:
                    raise FailedPrecondition(
                        f"there is no blob {segment.sha256}: write it first",
                        reason="BLOB_MISSING",
                    )
            put_work(transaction, held.model_copy(update={"segments": tuple(written)}))
            await self._note_progress(transaction, held)

        await self._database.change(complete)
        self._deadlines.pop(work_id, None)
        self._reach("after_written", 1)
        await self.commit_written()
        # Whoever committed it: a round may have been faster.
        return await self._database.change(lambda t: _is_done(t, work_id, token))

    async def commit_written(self) -> None:
        """Commit every update whose work is done.

        Raises:
            ResourceExhausted: The disk is full.
            Aborted: Trees kept changing; try again.
        """
        # What is committed may be what another update waited for.
        while update_id := await change_versions(self._database, self._key_blobs, self._commit_one):
            self._reach("after_commit", 1)
            metrics.domain_updates_total.labels("committed").inc()
            logger.info("domains updated", extra={"update_id": update_id})

    async def give_up(self) -> list[str]:
        """Roll back updates that nobody works on, and those whose rows cannot be made; returns
        their ids. First tables have all the time they need, the root's all the tries."""

        async def give_up(transaction: Transaction) -> list[tuple[str, str]]:
            work = [w for w in await get_all_work(transaction) if w.segments is None]
            held = {piece.update_id for piece in work if self._is_held(piece)}
            failed = {w.update_id for w in work if not self._is_held(w) and not self._may_try(w)}
            self._deadlines = {
                w.work_id: self._deadlines[w.work_id] for w in work if w.work_id in self._deadlines
            }
            over = []
            for update in await get_updates(transaction):
                reason = self._why_over(
                    update, is_failed=update.update_id in failed, is_held=update.update_id in held
                )
                if reason:
                    await endings.roll_back(transaction, update, reason)
                    over.append((update.update_id, reason))
            return over

        rolled_back = await self._database.change(give_up)
        for update_id, reason in rolled_back:
            metrics.domain_updates_total.labels("rolled_back").inc()
            facts = {"update_id": update_id, "reason": reason}
            logger.warning("an update was given up", extra=facts)
        return [update_id for update_id, _ in rolled_back]

    def _why_over(self, update: Update, *, is_failed: bool, is_held: bool) -> str:
        """Why an update is to be rolled back; empty: it is not."""
        if is_failed:
            return (
                f"its rows could not be made in {self._options.work_tries} tries: the executors' "
                "logs say why; an encoder may give values that fp16 cannot hold"
            )
        timeout_s = self._options.update_timeout_s
        idle_since_s = max(update.idle_since_s, self._begin_time_s)
        if update.is_first or is_held or time.time() - idle_since_s < timeout_s:
            return ""
        return f"nobody worked on it for {timeout_s:g} s: does an executor serve its base?"

    def _may_try(self, work: WorkRecord) -> bool:
        """Whether to give work out again. Without a root there is nothing; a restoration has
        another end."""
        is_roots_first = not work.path and not work.expected_version
        is_endless = is_roots_first or not work.update_id
        return is_endless or work.tries < self._options.work_tries

    async def _note_progress(
        self, transaction: Transaction, work: WorkRecord, *, within_s: float = 0.0
    ) -> None:
        """Note that a piece's update goes on, unless that was noted less than `within_s` ago."""
        update = await get_update(transaction, work.update_id)
        now = time.time()
        # What restores a segment is of no update.
        if update is not None and now - update.last_progress_s >= within_s:
            put_update(transaction, update.model_copy(update={"last_progress_s": now}), ())

    def _is_held(self, work: WorkRecord) -> bool:
        """Whether somebody has the work. What was leased before a restart has a new lease."""
        if not work.token:
            return False
        fresh = time.monotonic() + self._options.work_lease_s
        return self._deadlines.setdefault(work.work_id, fresh) > time.monotonic()

    async def _leased(
        self, transaction: Transaction, work_id: str, token: str
    ) -> WorkRecord | bool:
        """The work that `token` leases, or if it was completed whether its update is committed."""
        if await _is_done(transaction, work_id, token):
            return True
        work = await get_work(transaction, work_id)
        if work is None or not token or work.token != token:
            raise Aborted("the lease went to another, or the update was rolled back")
        return work if work.segments is None else False

    async def _check_segments(self, work: WorkRecord, written: Sequence[SegmentRecord]) -> None:
        if not 0 < len(written) <= _MAX_SEGMENTS:
            raise InvalidArgument("segments", f"1 to {_MAX_SEGMENTS}, not {len(written)}")
        base = await self._database.change(lambda t: split_base(t, work.base))
        form = base.split.form
        kind = SegmentKind(work.base_digest, work.encoder_sha256, FORM_NAMES[form], work.order)
        keys = []
        for position, segment in enumerate(written):
            field = f"segments[{position}]"
            check_sha256(f"{field}.sha256", segment.sha256)
            if segment.is_removal or segment.order != work.order:
                raise InvalidArgument(field, f"must hold rows of order {work.order}")
            keys.append(
                await self._key_blobs.read_segment_keys(
                    field, segment, kind, (NUM_SLOTS[form], base.hidden_size)
                )
            )
        wanted = await self._key_blobs.read_keys(work.keys_sha256)
        if not np.array_equal(np.concatenate(keys), wanted):
            raise InvalidArgument("segments", "do not hold the rows asked for, in their order")

    async def _commit_one(self, transaction: Transaction) -> str:
        """Commit the oldest update that can be; returns its id, or nothing."""
        work = {piece.work_id: piece for piece in await get_all_work(transaction)}
        metrics.domain_work.set(sum(piece.segments is None for piece in work.values()))
        for update in await get_updates(transaction):
            own = [work[work_id] for node in update.nodes for work_id in node.work_ids]
            if any(piece.segments is None for piece in own):
                continue
            tree = await Tree.load(transaction, update.base)
            if not endings.can_be_committed(tree, update):
                continue
            endings.commit(tree, update, work)
            await tree.name_versions([part.path for part in update.nodes], self._blob_sizes)
            for piece in own:
                done = _done_key(piece.work_id, piece.token)
                transaction.remember(done, b"", ttl_s=self._request_id_ttl_s)
            self._reach("before_commit", 1)
            return update.update_id
        return ""


async def _is_done(transaction: Transaction, work_id: str, token: str) -> bool:
    done = _done_key(work_id, token)
    return done in await transaction.recall([done])


def _done_key(work_id: str, token: str) -> str:
    return f"hmi:request:work:{work_id}:{token}"
