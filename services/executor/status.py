"""What WatchStatus tells: bases, load, and which adapters are on the device.

Knows snapshots and their differences; does not know why something changed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from hmi.executor.v1 import executor_pb2 as pb

INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state at one moment.

    Attributes:
        base_digests: Bases served.
        num_queued_tokens: Tokens of unanswered items.
        resident_digests: Versions in device memory.
    """

    base_digests: frozenset[str] = frozenset()
    num_queued_tokens: int = 0
    resident_digests: frozenset[str] = frozenset()


async def follow(
    executor_id: str, take: Callable[[], Snapshot]
) -> AsyncIterator[pb.WatchStatusResponse]:
    """The state at once and then its changes, at most one message an interval."""
    last = Snapshot()
    is_first = True
    while True:
        now = take()
        if is_first or now != last:
            yield pb.WatchStatusResponse(
                executor_id=executor_id,
                base_digests=sorted(now.base_digests),
                num_queued_tokens=now.num_queued_tokens,
                loaded_digests=sorted(now.resident_digests - last.resident_digests),
                evicted_digests=sorted(last.resident_digests - now.resident_digests),
            )
        last, is_first = now, False
        await asyncio.sleep(INTERVAL_S)
