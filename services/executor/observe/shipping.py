"""Brings counts to the knowledge store, each once, through the store's absences.

Knows messages, their numbers and answers; does not know how counts come about.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import grpc
import grpc.aio
import numpy as np

from hmi.admin.v1.domain_pb2 import Lookups
from hmi.knowledge.v1 import domain_pb2 as pb
from services.executor.observe.counter import Counter, Counts, Group

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

INTERVAL_S = 3.0
COUNT_S = 0.5
RETRY_S = 0.5
ANSWER_S = 10.0
END_S = 2.0
MESSAGE_KEYS = 1 << 17  # 12 bytes each
MESSAGE_GROUPS = 1 << 12

_MAX_COUNT = (1 << 32) - 1
_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Shipper:
    """Counts and ships, for as long as `run` runs, or a block of `held` lasts.

    A message is sent until it is answered, under the same number, so that the store counts it once;
    while one is unanswered, further counts gather in the counter, whose memory is bounded.

    Args:
        executor_id: This executor.
        interval_s: Between two shipments.
        end_s: How long the last one may take.
    """

    def __init__(
        self,
        counter: Counter,
        stub: KnowledgeServiceAsyncStub,
        executor_id: str,
        *,
        interval_s: float = INTERVAL_S,
        end_s: float = END_S,
    ) -> None:
        self._counter = counter
        self._stub = stub
        self._executor_id = executor_id
        self._interval_s = interval_s
        self._end_s = end_s
        self._epoch = secrets.randbits(63)
        self._packing = threading.Lock()
        self._sequence = 0
        self._unanswered: deque[pb.ObserveRequest] = deque()

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Ship while the block lasts, and what is left when it ends, if the store answers soon."""
        running = asyncio.create_task(self.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])
            await self._end()

    async def run(self) -> None:
        """Ship for ever."""
        clock = asyncio.get_running_loop().time
        due_at = clock() + self._interval_s
        while True:
            await asyncio.sleep(min(COUNT_S, self._interval_s))
            try:
                await asyncio.to_thread(self._counter.count)
                if clock() >= due_at:
                    await self._ship()
                    due_at = clock() + self._interval_s
            except Exception:  # a defect of ours must not end counting for good
                self._unanswered.clear()
                logger.exception("shipping counts failed: these are lost")

    async def _end(self) -> None:
        """Ship what was looked up since the last shipment, and what was under way to the store."""
        try:
            async with asyncio.timeout(self._end_s):
                # Waits for the counting that `run` may have left on another thread.
                await asyncio.to_thread(self._counter.count)
                await self._ship()
        except TimeoutError:
            logger.warning("the store does not answer: the last counts are lost")
        except Exception:  # nor may it keep the process from ending as it should
            logger.exception("shipping counts failed: the last are lost")

    async def _ship(self) -> None:
        """Send what no answer came to yet, then what was counted since."""
        await self._flush()
        await asyncio.to_thread(self._pack)
        await self._flush()

    def _pack(self) -> None:
        """Put what was counted into messages."""
        # Whoever is cancelled while he waits for this leaves it running: who packs next waits.
        with self._packing:
            for piece in _pieces(self._counter.take()):
                self._sequence += 1
                request = pb.ObserveRequest(
                    executor_id=self._executor_id,
                    epoch=self._epoch,
                    sequence=self._sequence,
                    counts=piece,
                )
                self._unanswered.append(request)

    async def _flush(self) -> None:
        while self._unanswered:
            await self._send(self._unanswered[0])
            self._unanswered.popleft()

    async def _send(self, request: pb.ObserveRequest) -> None:
        """Send a message until it is answered; one that is refused is dropped."""
        is_reachable = True
        while True:
            try:
                await self._stub.Observe(request, timeout=ANSWER_S)
                return
            except grpc.aio.AioRpcError as error:
                facts = {"code": error.code().name, "details": error.details()}
                if error.code() not in _LOST:
                    logger.warning("the store refuses counts", extra=facts)
                    return
                if is_reachable:
                    logger.info("counts wait for the store", extra=facts)
                is_reachable = False
            await asyncio.sleep(RETRY_S)


def _pieces(counts: Mapping[Group, Counts]) -> Iterator[list[pb.TenantCounts]]:
    """The counts in messages of bounded size. A group stays whole: none has so many keys, and the
    store holds its counts against its tokens."""
    piece: list[pb.TenantCounts] = []
    num_keys = 0
    for group, counted in counts.items():
        num_keys += counted.num_keys
        if piece and (num_keys > MESSAGE_KEYS or len(piece) == MESSAGE_GROUPS):
            yield piece
            piece, num_keys = [], counted.num_keys
        piece.append(_to_pb(group, counted))
    if piece:
        yield piece


def _to_pb(group: Group, counted: Counts) -> pb.TenantCounts:
    computed, unigram, bigram, trigram = (int(number) for number in counted.results)
    counts = np.concatenate([sketch.counts for sketch in counted.sketches])
    return pb.TenantCounts(
        base=group.base,
        path=group.path,
        tenant=group.tenant,
        num_tokens=counted.num_tokens,
        keys=np.concatenate([sketch.keys for sketch in counted.sketches]).tolist(),
        counts=np.minimum(counts, _MAX_COUNT).tolist(),
        lookups=Lookups(
            num_tokens=counted.num_tokens,
            num_trigram=trigram,
            num_bigram=bigram,
            num_unigram=unigram,
            num_computed=computed,
        ),
    )
