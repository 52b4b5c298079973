"""The way to Redis: transactions one after another, snapshots, the log of changes.

Knows connections and when Redis is away; does not know what a change means.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    ResponseError,
    WatchError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import Unavailable
from services.knowledge_store import metrics
from services.knowledge_store.metadata.kinds import ALL_KINDS, LOG, LOG_FIELD, REVISION
from services.knowledge_store.metadata.transaction import Transaction

logger = logging.getLogger(__name__)

T = TypeVar("T")

_READ_TRIES = 3

_AWAY = (RedisConnectionError, RedisTimeoutError, WatchError)


@contextmanager
def unavailable_if_away() -> Iterator[None]:
    """Turn the errors of a Redis that is away, starting, full or refuses into UNAVAILABLE.

    A refusal is the state of Redis, not the caller's fault: MISCONF (it cannot write to its disk),
    OOM, READONLY, NOREPLICAS, NOPERM. An operator ends it, and the same call then succeeds.
    """
    try:
        yield
    except _AWAY as error:
        # Every call meets it; whoever follows the log reports when it begins and ends.
        logger.debug("redis is not available", extra={"error": repr(error)})
        raise _unavailable() from error
    except ResponseError as error:
        logger.warning("redis refuses", extra={"error": str(error)})
        raise _unavailable() from error


def _unavailable() -> Unavailable:
    return Unavailable(
        "the metadata cannot be reached: retry", reason="REDIS_UNAVAILABLE", retry_after_s=0.5
    )


class Database:
    """The metadata, as protobuf messages.

    Args:
        url: `redis://…` or `unix:///path`.
        timeout_s: Longest wait for one answer of Redis.
        log_revisions: How many revisions the log holds.
    """

    def __init__(self, url: str, *, timeout_s: float, log_revisions: int) -> None:
        self._timeout_s = timeout_s
        self._log_revisions = log_revisions
        self._redis = Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            # A command that was sent is never sent again: it may have been done.
            retry=Retry(NoBackoff(), 0),
        )
        self._changing = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """End the connections, after the work under way."""
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._redis.aclose()

    async def wait(self, *, timeout_s: float, check: Callable[[], None]) -> None:
        """Return once Redis answers; `check` may raise while it does not.

        Raises:
            Unavailable: It did not within `timeout_s` seconds.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                await self._redis.ping()
            except (RedisConnectionError, RedisTimeoutError, ResponseError) as error:
                check()
                if asyncio.get_running_loop().time() > deadline:
                    raise Unavailable(f"Redis does not answer: {error}") from error
                await asyncio.sleep(0.02)
            else:
                return

    async def change(self, operation: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `operation` in a transaction and commit it, even if the caller is cancelled.

        Raises:
            Unavailable: Redis is away. The change may have been made; a request_id tells.
            HmiError: What `operation` raises; nothing is changed then.
        """
        return await self._uncancelled(self._change(operation))

    async def read(self, operation: Callable[[Transaction], Awaitable[T]]) -> T:
        """Run `operation`, which writes nothing, beside the changes; it sees one revision.

        Raises:
            Unavailable: Redis is away.
            HmiError: What `operation` raises.
        """
        return await self._uncancelled(self._read(operation))

    @asynccontextmanager
    async def unchanging(self) -> AsyncIterator[None]:
        """No change is made by this store within the block.

        Raises:
            Unavailable: Changes have been waiting for Redis for too long.
        """
        try:
            async with asyncio.timeout(3 * self._timeout_s):
                await self._changing.acquire()
        except TimeoutError:
            raise Unavailable("too many changes wait", retry_after_s=1.0) from None
        try:
            yield
        finally:
            self._changing.release()

    async def snapshot(self) -> tuple[int, list[pb.Change]]:
        """Everything, at one revision."""
        return await self._uncancelled(self._snapshot())

    async def changes_after(self, revision: int, *, limit: int) -> list[pb.WatchResponse] | None:
        """Up to `limit` revisions after `revision`, oldest first; none if it is the latest.

        None if the log does not lead on from `revision`: too long ago, or Redis lost what it held.
        """
        return await self._uncancelled(self._changes_after(revision, limit))

    async def wait_for_change(self, revision: int, *, timeout_s: float) -> int:
        """The latest revision, as soon as it is not `revision` or after `timeout_s` seconds."""
        return await self._uncancelled(self._wait_for_change(revision, timeout_s))

    async def _snapshot(self) -> tuple[int, list[pb.Change]]:
        with unavailable_if_away():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(REVISION)
                for kind in ALL_KINDS:
                    pipe.hvals(kind.hash_key)
                revision, *columns = await pipe.execute()
        changes = [
            kind.change(kind.parse(data))
            for kind, column in zip(ALL_KINDS, columns, strict=True)
            for data in column
        ]
        return int(revision or 0), changes

    async def _changes_after(self, revision: int, limit: int) -> list[pb.WatchResponse] | None:
        with unavailable_if_away():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.get(REVISION)
                pipe.xrange(LOG, min=f"{revision + 1}-0", count=limit)
                latest, entries = await pipe.execute()
        if not entries and int(latest or 0) != revision:
            return None
        changes = []
        for expected, (entry_id, fields) in enumerate(entries, start=revision + 1):
            if int(entry_id.split(b"-")[0]) != expected:
                return None
            change = pb.WatchResponse()
            change.ParseFromString(fields[LOG_FIELD])
            changes.append(change)
        return changes

    async def _wait_for_change(self, revision: int, timeout_s: float) -> int:
        block_s = min(timeout_s, self._timeout_s / 2)
        with unavailable_if_away():
            await self._redis.xread({LOG: f"{revision}-0"}, count=1, block=int(block_s * 1_000))
            return int(await self._redis.get(REVISION) or 0)

    async def _read(self, operation: Callable[[Transaction], Awaitable[T]]) -> T:
        for _ in range(_READ_TRIES):
            with unavailable_if_away():
                async with self._redis.pipeline(transaction=True) as pipe:
                    await pipe.watch(REVISION)
                    transaction = Transaction(pipe, int(await pipe.get(REVISION) or 0))
                    # What was read half before a change and half after it may be no state at all,
                    # and so may be what it raises.
                    (outcome,) = await asyncio.gather(
                        operation(transaction), return_exceptions=True
                    )
                    if int(await pipe.get(REVISION) or 0) != transaction.revision:
                        continue
                    if isinstance(outcome, BaseException):
                        raise outcome
                    return outcome
        # Changes keep coming between.
        return await self._change(operation)

    async def _change(self, operation: Callable[[Transaction], Awaitable[T]]) -> T:
        async with self.unchanging():
            with unavailable_if_away():
                async with self._redis.pipeline(transaction=True) as pipe:
                    await pipe.watch(REVISION)
                    transaction = Transaction(pipe, int(await pipe.get(REVISION) or 0))
                    result = await operation(transaction)
                    revision = await transaction.commit(log_revisions=self._log_revisions)
        metrics.revision.set(revision)
        return result

    async def _uncancelled(self, work: Coroutine[Any, Any, T]) -> T:
        """What `work` gives. Cancelling the caller does not reach `work`, which ends by itself.

        A change must not be torn. And redis-py awaits with asyncio.wait_for, which before Python
        3.12 swallows a cancellation that comes as the awaited ends.
        """
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # the caller, if it is still there, raises it
