"""One change of the metadata: reads, then writes that happen together or not at all.

Knows Redis' WATCH, MULTI and EXEC; does not know what a change means.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message
from redis.asyncio.client import Pipeline

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import InvalidArgument
from services.knowledge_store.metadata.kinds import (
    LAST_VERSIONS,
    LOG,
    LOG_FIELD,
    REVISION,
    SUMS,
    Kind,
)

M = TypeVar("M", bound=Message)

# A revision is one message of a watch; with room to the 64 MiB that a message may have.
MAX_CHANGE_BYTES = 16 << 20
# What a deletion takes in it beside what names the resource, at most.
_FRAME_BYTES = 16


class Transaction:
    """Reads see what was there at the start and what this transaction wrote.

    Args:
        pipe: A pipeline that watches `hmi:revision`. Every commit writes that key, so a commit
            after any other change fails: transactions are serialisable.
        revision: The revision read under that watch.
    """

    def __init__(self, pipe: Pipeline, revision: int) -> None:
        # redis-py types an answer as bytes or str; without decode_responses it is bytes.
        self._pipe: Any = pipe
        self.revision = revision
        self._read: dict[tuple[str, str], Any] = {}
        self._written: dict[tuple[str, str], tuple[Kind[Any], Message, bool]] = {}
        self._remembered: list[tuple[str, bytes, int]] = []
        self._last_versions: dict[str, int] = {}
        self._records: dict[tuple[str, str], bytes | None] = {}
        self._deleted_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether further deletions should wait for another transaction: this one's revision,
        with room to spare, would otherwise come near what one may hold."""
        return self._deleted_bytes > MAX_CHANGE_BYTES // 2

    async def load(self, kind: Kind[M], names: Iterable[str]) -> None:
        """Read many in one round trip; `get` then answers from memory."""
        missing = [name for name in set(names) if (kind.hash_key, name) not in self._read]
        if not missing:
            return
        found: list[bytes | None] = await self._pipe.hmget(kind.hash_key, missing)
        for name, data in zip(missing, found, strict=True):
            self._read[kind.hash_key, name] = None if data is None else kind.parse(data)

    async def get(self, kind: Kind[M], name: str) -> M | None:
        """A copy of the resource, or None."""
        await self.load(kind, [name])
        held: M | None = self._read[kind.hash_key, name]
        if held is None:
            return None
        copy = kind.message()
        copy.CopyFrom(held)
        return copy

    async def all(self, kind: Kind[M]) -> list[M]:
        """Every resource of a kind, as it was at the start."""
        return [kind.parse(data) for data in await self._pipe.hvals(kind.hash_key)]

    async def names(self, set_key: str) -> list[str]:
        """Names in a set of `kinds`, as they were at the start."""
        return sorted(name.decode() for name in await self._pipe.smembers(set_key))

    async def count(self, set_key: str) -> int:
        """Size of a set of `kinds`, as it was at the start."""
        return int(await self._pipe.scard(set_key))

    async def sums(self, names: Iterable[str]) -> list[int]:
        """Totals of `kinds`, as they were at the start; 0 where nothing was added."""
        asked = list(names)
        found = await self._pipe.hmget(SUMS, asked) if asked else []
        return [int(number or 0) for number in found]

    async def last_versions(self, models: Iterable[str]) -> dict[str, int]:
        """Highest version number of each model that was deleted, 0 if none ever was."""
        names = list(models)
        found = await self._pipe.hmget(LAST_VERSIONS, names) if names else []
        return {name: int(number or 0) for name, number in zip(names, found, strict=True)}

    async def recall(self, keys: Iterable[str]) -> dict[str, bytes]:
        """What `remember` kept, for those of `keys` that are not forgotten."""
        asked = list(keys)
        found = await self._pipe.mget(asked) if asked else []
        return {key: value for key, value in zip(asked, found, strict=True) if value is not None}

    async def record(self, hash_key: str, name: str) -> bytes | None:
        """A record of the store's own, which no watcher sees; None if there is none."""
        if (hash_key, name) in self._records:
            return self._records[hash_key, name]
        found: bytes | None = await self._pipe.hget(hash_key, name)
        return found

    async def records(self, hash_key: str) -> dict[str, bytes]:
        """All records of a hash, by name."""
        found = await self._pipe.hgetall(hash_key)
        held: dict[str, bytes] = {name.decode(): data for name, data in found.items()}
        for (written_to, name), data in self._records.items():
            if written_to == hash_key and data is None:
                held.pop(name, None)
            elif written_to == hash_key and data is not None:
                held[name] = data
        return held

    def put_record(self, hash_key: str, name: str, data: bytes | None) -> None:
        """Add or replace a record; None deletes it."""
        self._records[hash_key, name] = data

    def put(self, kind: Kind[M], message: M) -> None:
        """Add or replace."""
        key = (kind.hash_key, kind.name(message))
        kept = kind.message()
        kept.CopyFrom(message)
        self._read[key] = kept
        self._written[key] = (kind, kept, False)

    def delete(self, kind: Kind[M], message: M) -> None:
        """Delete; `message` as it was read, for the sets it is in follow from it."""
        key = (kind.hash_key, kind.name(message))
        self._read[key] = None
        self._written[key] = (kind, message, True)
        self._deleted_bytes += kind.bare(message).ByteSize() + _FRAME_BYTES

    def remember(self, key: str, value: bytes, *, ttl_s: int) -> None:
        """Keep a value for a while."""
        self._remembered.append((key, value, ttl_s))

    def set_last_version(self, model: str, number: int) -> None:
        """Keep a deleted model's highest version number for good."""
        self._last_versions[model] = number

    async def commit(self, *, log_revisions: int) -> int:
        """Do it all at once; returns the revision. Without a change nothing is done.

        Raises:
            redis.WatchError: Another store changed the metadata, or Redis went away; in that case
                it may or may not have been done.
            InvalidArgument: The change is too large for one revision.
        """
        if not self._written and not self._records:
            return self.revision
        revision = self.revision + 1
        change = pb.WatchResponse(revision=revision, changes=self._changes())
        if change.ByteSize() > MAX_CHANGE_BYTES:
            raise InvalidArgument(
                "request", f"changes more than {MAX_CHANGE_BYTES} bytes at once: send it in parts"
            )
        pipe = self._pipe
        pipe.multi()
        for kind, message, is_deleted in self._written.values():
            name = kind.name(message)
            if is_deleted:
                pipe.hdel(kind.hash_key, name)
            else:
                pipe.hset(kind.hash_key, name, message.SerializeToString())
            for set_key in kind.sets(message):
                (pipe.srem if is_deleted else pipe.sadd)(set_key, name)
            for total, number in kind.sums(message).items():
                pipe.hincrby(SUMS, total, -number if is_deleted else number)
        for (hash_key, name), data in self._records.items():
            if data is None:
                pipe.hdel(hash_key, name)
            else:
                pipe.hset(hash_key, name, data)
        for model, number in self._last_versions.items():
            pipe.hset(LAST_VERSIONS, model, str(number))
        for key, value, ttl_s in self._remembered:
            pipe.set(key, value, ex=ttl_s)
        pipe.set(REVISION, revision)
        pipe.xadd(
            LOG, {LOG_FIELD: change.SerializeToString()}, id=f"{revision}-0",
            maxlen=log_revisions, approximate=False,
        )  # fmt: skip
        await pipe.execute()
        return revision

    def _changes(self) -> list[pb.Change]:
        changes = []
        for kind, message, is_deleted in self._written.values():
            change = kind.change(kind.bare(message) if is_deleted else message)
            change.is_deleted = is_deleted
            changes.append(change)
        return changes
