"""Damaged segments are made anew, so that domains heal by themselves.

A segment's bytes follow from its keys and its encoder, so its own keys, if they can still be read,
give the blob back under its name: for tables of now, of before and those that versions pin. Where
they cannot, or the executors of today round otherwise, the domain's rows of that order are written
anew by an update, which names new versions of its table.

Knows what is set aside and what refers to it; does not know who notices damage. All it has to
remember is which files are set aside, so a crash at any step repeats at most some work.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from dataclasses import dataclass

import numpy as np

from hmi.admin.v1 import resources_pb2 as rpb
from services.common import array_blob
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.common.ngram_counts import check_keys
from services.common.ngrams import order_of
from services.common.sorted_keys import IntArray
from services.knowledge_store import metrics
from services.knowledge_store.blobs import BlobDirectory
from services.knowledge_store.damaged import DamagedBlob
from services.knowledge_store.domains.key_blobs import (
    SEGMENT_FORMAT,
    KeyBlobs,
    in_vocabulary,
)
from services.knowledge_store.domains.naming import change_versions
from services.knowledge_store.domains.planner import Planner
from services.knowledge_store.domains.records import (
    WorkRecord,
    get_all_work,
    get_table,
    put_work,
)
from services.knowledge_store.domains.tables import Tree
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import BASES, DOMAIN_WORK, DOMAINS
from services.knowledge_store.metadata.transaction import Transaction

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Legible:
    """What can still be read of a damaged segment; whether it is right, its digest will tell."""

    base_digest: str
    encoder_sha256: str
    order: int
    keys: IntArray


@dataclass(frozen=True)
class _State:
    """What there is to repair with.

    Attributes:
        bases: Names of the split bases, by digest.
        vocab_sizes: Of their roots, by base name.
        encoders: sha256 of every node's.
        work: On segments that are being restored, by their sha256.
        nodes: Those that have a damaged segment now, by its sha256.
        named: A node whose table version a damaged manifest is, by its sha256.
    """

    bases: dict[str, str]
    vocab_sizes: dict[str, int]
    encoders: frozenset[str]
    work: dict[str, WorkRecord]
    nodes: dict[str, list[rpb.Domain]]
    named: dict[str, rpb.Domain]

    def knows(self, legible: _Legible) -> bool:
        """Whether executors can make these rows: what is damaged may say anything."""
        name = self.bases.get(legible.base_digest)
        if name is None or legible.encoder_sha256 not in self.encoders:
            return False
        return bool(in_vocabulary(legible.keys, self.vocab_sizes[name]).all())


class Repairs:
    """Brings damaged segments back."""

    def __init__(
        self, database: Database, planner: Planner, key_blobs: KeyBlobs, blobs: BlobDirectory
    ) -> None:
        self._database = database
        self._planner = planner
        self._key_blobs = key_blobs
        self._blobs = blobs
        self._is_idle = False
        self._told: set[str] = set()

    async def round(self) -> None:
        """Do what can be done now for each damaged blob.

        Raises:
            ResourceExhausted: The disk is full.
        """
        damaged = await self._blobs.damaged()
        if not damaged and self._is_idle:
            return
        state = await self._database.change(lambda t: _state(t, damaged))
        back = (await self._blobs.sizes(blob.sha256 for blob in damaged)).keys()
        open_digests = {blob.sha256 for blob in damaged} - back
        over = [work for sha256, work in state.work.items() if sha256 not in open_digests]
        await self._end(over)
        for blob in damaged:
            if blob.sha256 in back:
                await self._restored(blob)
            elif blob.sha256 in state.named:
                await self._name(state.named[blob.sha256])
            else:
                await self._repair(blob, state)
        self._is_idle = not damaged

    async def _repair(self, blob: DamagedBlob, state: _State) -> None:
        work = state.work.get(blob.sha256)
        if work is not None and work.segments is None:
            return  # an executor is at it, or will be
        if work is not None:
            logger.warning(
                "a damaged segment's rows came out otherwise than they were",
                extra={"sha256": blob.sha256, "path": work.path},
            )
            await self._end([work])
        elif not blob.was_tried:
            content = await self._content(blob)
            if content is None:
                return
            legible = await asyncio.to_thread(_legible, content)
            if legible is not None and state.knows(legible):
                await self._restore(blob, legible, state)
                return
        if not blob.was_tried:
            await self._blobs.give_up_damaged(blob.sha256)
        await self._rewrite(blob, state)

    async def _name(self, node: rpb.Domain) -> None:
        """Write a node's manifest again: what it says is known."""

        async def name(transaction: Transaction) -> None:
            tree = await Tree.load(transaction, node.base)
            await tree.name_versions([node.path], self._blobs.sizes)

        await change_versions(self._database, self._key_blobs, name)

    async def _restore(self, blob: DamagedBlob, legible: _Legible, state: _State) -> None:
        """Have the very rows of a segment computed again."""
        nodes = state.nodes.get(blob.sha256, [])
        work = WorkRecord(
            work_id=f"restore-{uuid.uuid4().hex}",
            update_id="",
            base=state.bases[legible.base_digest],
            base_digest=legible.base_digest,
            path=nodes[0].path if nodes else "",
            encoder_sha256=legible.encoder_sha256,
            order=legible.order,
            keys_sha256=await self._key_blobs.write_keys(legible.keys),
            num_entries=len(legible.keys),
            expected_version=0,
            restores=blob.sha256,
        )

        async def start(transaction: Transaction) -> None:
            put_work(transaction, work)

        await self._database.change(start)
        logger.warning(
            "a damaged segment is made anew", extra={"sha256": blob.sha256, "path": work.path}
        )

    async def _rewrite(self, blob: DamagedBlob, state: _State) -> None:
        """Have the rows written anew of every node that has the segment now."""
        for node in state.nodes.get(blob.sha256, []):
            try:
                update_id = await self._planner.repair(node.base, node.path, blob.sha256)
            except (FailedPrecondition, NotFound) as error:
                logger.debug("a repair is put off", extra={"error": error.message})
                continue
            if update_id:
                metrics.domain_repairs_total.labels("rewritten").inc()
                logger.warning(
                    "rows of a damaged segment are written anew",
                    extra={"sha256": blob.sha256, "path": node.path, "update_id": update_id},
                )
        if blob.sha256 not in state.nodes and blob.sha256 not in self._told:
            self._told.add(blob.sha256)
            logger.error(
                "a damaged blob cannot be made anew: restore its file, or push again what needs it",
                extra={"sha256": blob.sha256, "kept_as": str(blob.path)},
            )

    async def _restored(self, blob: DamagedBlob) -> None:
        await self._blobs.forget_damaged([blob.sha256])
        self._told.discard(blob.sha256)
        metrics.domain_repairs_total.labels("restored").inc()
        logger.warning("a damaged blob is whole again", extra={"sha256": blob.sha256})

    async def _end(self, over: list[WorkRecord]) -> None:
        """Forget work on what is restored, cannot be, or is needed no more."""

        async def end(transaction: Transaction) -> None:
            for work in over:
                transaction.put_record(DOMAIN_WORK, work.work_id, None)

        if over:
            await self._database.change(end)

    async def _content(self, blob: DamagedBlob) -> bytes | None:
        """A damaged file's bytes; None if it was forgotten meanwhile, as nobody needs it."""
        try:
            return await asyncio.to_thread(blob.path.read_bytes)
        except FileNotFoundError:
            return None


async def _state(transaction: Transaction, damaged: list[DamagedBlob]) -> _State:
    split = [base for base in await transaction.all(BASES) if base.HasField("split")]
    bases = {base.digest: base.name for base in split}
    work = {w.restores: w for w in await get_all_work(transaction) if w.restores}
    nodes: dict[str, list[rpb.Domain]] = {}
    named: dict[str, rpb.Domain] = {}
    vocab_sizes: dict[str, int] = {}
    encoders = set()
    digests = {blob.sha256 for blob in damaged}
    for node in await transaction.all(DOMAINS):
        encoders.add(node.encoder_sha256)
        named[node.table_version] = node
        table = await get_table(transaction, node.base, node.path)
        if not node.path:
            vocab_sizes[node.base] = table.vocab_size
        for sha256 in digests & {segment.sha256 for segment in table.rows.segments}:
            nodes.setdefault(sha256, []).append(node)
    return _State(bases, vocab_sizes, frozenset(encoders), work, nodes, named)


def _legible(data: bytes) -> _Legible | None:
    """What a damaged file says of its keys; None if it is no segment of rows, or says nothing."""
    try:
        content = array_blob.parse(data, what="segment")
        keys = content.arrays.get("keys")
        if content.metadata.get("format") != SEGMENT_FORMAT or keys is None:
            return None
        if "values" not in content.arrays or not len(keys):
            return None
        check_keys(keys, "keys")
        order = int(content.metadata["order"])
        if (order_of(keys) != order).any():
            return None
        base_digest, encoder_sha256 = (
            str(content.metadata[name]) for name in ("base_digest", "encoder_sha256")
        )
        return _Legible(base_digest, encoder_sha256, order, np.array(keys))
    except (InvalidArgument, KeyError, TypeError, ValueError):
        return None  # the damage is in the header or among the keys
