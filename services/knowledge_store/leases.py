"""Members: who is there, and which blobs they use.

Knows deadlines; does not know what members do. Members are in Redis, for watchers to see; deadlines
and held blobs are in memory, because renewals come every few seconds from everyone and would each
cost an fsync, and because a restart loses nothing: every member then has a whole lease to renew in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import InvalidArgument, NotFound, Unavailable
from services.common.ids import check_sha256
from services.knowledge_store import metrics
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import MEMBERS
from services.knowledge_store.metadata.transaction import Transaction

logger = logging.getLogger(__name__)

_MAX_ID_CHARACTERS = 128


@dataclass(frozen=True)
class Lease:
    """One member's lease. `deadline` is in seconds of the monotonic clock."""

    deadline: float
    held_blobs: frozenset[str] = frozenset()


class Leases:
    """The leases of all members."""

    def __init__(self, database: Database, *, lease_ms: int) -> None:
        self._database = database
        self._lease_s = lease_ms / 1_000
        self._leases: dict[str, Lease] = {}

    async def load(self) -> None:
        """Give every member known from before a new lease."""
        _, changes = await self._database.snapshot()
        for change in changes:
            if change.HasField("member"):
                self._set(change.member.member_id, Lease(self._deadline()))

    async def register(self, member: pb.Member) -> None:
        """Announce a member and start its lease; again renews it.

        Raises:
            InvalidArgument: A field.
        """
        if not 0 < len(member.member_id) <= _MAX_ID_CHARACTERS:
            raise InvalidArgument("member.member_id", f"1 to {_MAX_ID_CHARACTERS} characters")
        if member.kind not in (pb.MEMBER_KIND_GATEWAY, pb.MEMBER_KIND_EXECUTOR):
            raise InvalidArgument("member.kind", "must be a gateway or an executor")
        if not member.address:
            raise InvalidArgument("member.address", "must not be empty")
        for position, digest in enumerate(member.base_digests):
            check_sha256(f"member.base_digests[{position}]", digest)

        async def register(transaction: Transaction) -> None:
            if await transaction.get(MEMBERS, member.member_id) != member:
                transaction.put(MEMBERS, member)
            # At once, so that an end that waits for its turn sees that the member is back.
            before = self._leases.get(member.member_id)
            held = before.held_blobs if before else frozenset()
            self._set(member.member_id, Lease(self._deadline(), held))

        await self._database.change(register)

    def renew(self, member_id: str, held_blobs: Iterable[str]) -> None:
        """Go on with a lease; `held_blobs` replaces the set it holds.

        Raises:
            InvalidArgument: A held blob is no sha256.
            NotFound: The lease ended.
        """
        held = frozenset(check_sha256("held_blobs", sha256) for sha256 in held_blobs)
        if member_id not in self._leases:
            raise NotFound(f"the lease of {member_id} ended: register again", reason="LEASE_ENDED")
        self._set(member_id, Lease(self._deadline(), held))

    async def unregister(self, member_id: str) -> None:
        """End a lease. One that ended is no error."""
        self._leases.pop(member_id, None)
        await self._announce_end(member_id)

    def held_blobs(self) -> set[str]:
        """sha256 of every blob that a member uses."""
        return {sha256 for lease in self._leases.values() for sha256 in lease.held_blobs}

    async def run(self) -> None:
        """End leases whose time is over, for ever."""
        while True:
            await asyncio.sleep(self._lease_s / 10)
            now = time.monotonic()
            over = [(name, lease) for name, lease in self._leases.items() if lease.deadline < now]
            for member_id, lease in over:
                await self._expire(member_id, lease)

    async def _expire(self, member_id: str, lease: Lease) -> None:
        if self._leases.get(member_id) is not lease:
            return
        del self._leases[member_id]
        try:
            await self._announce_end(member_id)
        except Unavailable:
            # Tried again at the next round; until it is announced it may still be renewed.
            self._leases.setdefault(member_id, lease)
        except Exception:
            self._leases.setdefault(member_id, lease)
            logger.exception("a member's end is put off", extra={"member_id": member_id})
        else:
            logger.warning("a member's lease ended", extra={"member_id": member_id})

    async def _announce_end(self, member_id: str) -> None:
        async def end(transaction: Transaction) -> None:
            member = await transaction.get(MEMBERS, member_id)
            if member is not None and member_id not in self._leases:
                transaction.delete(MEMBERS, member)

        await self._database.change(end)
        metrics.members.set(len(self._leases))

    def _set(self, member_id: str, lease: Lease) -> None:
        self._leases[member_id] = lease
        metrics.members.set(len(self._leases))

    def _deadline(self) -> float:
        return time.monotonic() + self._lease_s
