"""Drafts of updates: blobs with keys written, work cut to pieces; nothing is promised yet.

Knows segments and work; does not know why rows change. A draft that nobody starts is blobs that
nothing holds, and they are collected.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.ngrams import MAX_ORDER, order_of
from services.common.sorted_keys import IntArray, without
from services.knowledge_store.domains.key_blobs import (
    FORM_NAMES,
    KeyBlobs,
    SegmentKind,
    row_bytes,
)
from services.knowledge_store.domains.options import DomainOptions
from services.knowledge_store.domains.records import (
    ByOrder,
    NodeUpdate,
    Rows,
    SegmentRecord,
    Update,
    WorkRecord,
)

# Executors write segments at least as large where they have the rows.
_FULL_SEGMENT_BYTES = 64 << 20


@dataclass(frozen=True)
class Goal:
    """Rows that a node is to have.

    Attributes:
        node: The node, with its encoder and table_number.
        now: The rows it has.
        keys_now: Their keys.
        keys: The keys it is to have.
        damaged: Segments that cannot be read: rows of their orders are written anew.
    """

    node: rpb.Domain
    now: Rows
    keys_now: IntArray
    keys: IntArray
    damaged: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Draft:
    """An update that can be started, with its work."""

    update: Update
    work: tuple[WorkRecord, ...]

    @property
    def blobs(self) -> set[str]:
        """sha256 of every blob it needs."""
        held = {piece.keys_sha256 for piece in self.work}
        for node in self.update.nodes:
            held.update(segment.sha256 for segment in node.removals)
            held.update({node.keys_sha256} - {""})
        return held


class Drafting:
    """Makes drafts."""

    def __init__(self, key_blobs: KeyBlobs, options: DomainOptions) -> None:
        self._key_blobs = key_blobs
        self._options = options

    async def draft(self, base: rpb.Base, goals: Sequence[Goal], *, is_first: bool) -> Draft | None:
        """A draft that brings nodes to their goals; None if nothing is to do.

        Raises:
            ResourceExhausted: The disk is full.
        """
        update_id = uuid.uuid4().hex
        nodes: list[NodeUpdate] = []
        work: list[WorkRecord] = []
        for goal in goals:
            parts = await asyncio.to_thread(self._parts, base, goal)
            if not any(part.is_change for part in parts):
                continue
            own = await self._work(base, goal, update_id, parts)
            work += own
            nodes.append(await self._node(base, goal, parts, own))
        if not nodes:
            return None
        update = Update(
            update_id=update_id, base=base.name, is_first=is_first, start_time_s=time.time(),
            nodes=tuple(nodes),
        )  # fmt: skip
        return Draft(update, tuple(work))

    def _parts(self, base: rpb.Base, goal: Goal) -> list[_Part]:
        orders, orders_now = order_of(goal.keys), order_of(goal.keys_now)
        parts = []
        for order in range(1, MAX_ORDER + 1):
            keys, now = goal.keys[orders == order], goal.keys_now[orders_now == order]
            segments = tuple(s for s in goal.now.segments if s.order == order)
            added, removed = without(keys, now), without(now, keys)
            num_after = len(segments) + bool(len(added)) + bool(len(removed))
            # Written anew they would be about as many as there is room for in full ones.
            num_full = -(-len(keys) * row_bytes(base) // _FULL_SEGMENT_BYTES)
            max_segments = max(self._options.max_segments, 2 * num_full)
            is_damaged = any(segment.sha256 in goal.damaged for segment in segments)
            if is_damaged or num_after > max_segments:
                parts.append(_Part(order, (), keys, removed[:0], is_change=True))
            else:
                is_change = bool(len(added) or len(removed))
                parts.append(_Part(order, segments, added, removed, is_change=is_change))
        return parts

    async def _work(
        self, base: rpb.Base, goal: Goal, update_id: str, parts: Sequence[_Part]
    ) -> list[WorkRecord]:
        rows_per_work = self._options.rows_per_work_of(base)
        pieces = [
            (part.order, part.written[start : start + rows_per_work])
            for part in parts
            for start in range(0, len(part.written), rows_per_work)
        ]
        return [
            WorkRecord(
                # Work of one node is given out and applied in the order of its ids.
                work_id=f"{update_id}-{number:05d}-{uuid.uuid4().hex[:8]}",
                update_id=update_id,
                base=base.name,
                base_digest=base.digest,
                path=goal.node.path,
                encoder_sha256=goal.node.encoder_sha256,
                order=order,
                keys_sha256=await self._key_blobs.write_keys(keys),
                num_entries=len(keys),
                expected_version=goal.node.table_number,
            )
            for number, (order, keys) in enumerate(pieces)
        ]

    async def _node(
        self, base: rpb.Base, goal: Goal, parts: Sequence[_Part], work: Sequence[WorkRecord]
    ) -> NodeUpdate:
        removals = [
            await self._removal(base, goal.node, part.order, part.removed)
            for part in parts
            if len(part.removed)
        ]
        kept = {segment for part in parts for segment in part.kept}
        return NodeUpdate(
            path=goal.node.path,
            table_number=goal.node.table_number,
            kept=tuple(segment for segment in goal.now.segments if segment in kept),
            removals=tuple(removals),
            work_ids=tuple(piece.work_id for piece in work),
            keys_sha256=await self._key_blobs.write_keys(goal.keys),
            num_entries=await asyncio.to_thread(num_by_order, goal.keys),
            is_repair=bool(goal.damaged),
        )

    async def _removal(
        self, base: rpb.Base, node: rpb.Domain, order: int, keys: IntArray
    ) -> SegmentRecord:
        form = FORM_NAMES[base.split.form]
        kind = SegmentKind(base.digest, node.encoder_sha256, form, order)
        return await self._key_blobs.write_removal(keys, kind)


@dataclass(frozen=True)
class _Part:
    """What happens to a node's rows of one order: segments kept, keys written and removed."""

    order: int
    kept: tuple[SegmentRecord, ...]
    written: IntArray
    removed: IntArray
    is_change: bool


def num_by_order(keys: IntArray) -> ByOrder:
    """Keys of order 1, 2 and 3."""
    _, one, two, three = (int(n) for n in np.bincount(order_of(keys), minlength=MAX_ORDER + 1))
    return one, two, three
