"""A stream of items: bounded in flight, each answered once, broken calls taken up again.

Knows items and answers; does not know how a gateway makes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hmi.client.predictions import Answer, Item, Provenance, prediction_from_pb
from hmi.client.retry import Deadline
from hmi.client.transport import Duplex, Transport
from hmi.errors import HmiError, Unavailable, from_status
from hmi.inference.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    from hmi.inference.v1.inference_pb2_grpc import InferenceServiceAsyncStub


@dataclass(slots=True)
class _Sent:
    item: Item
    attempt: int = 1


async def as_async(items: Iterable[Item] | AsyncIterable[Item]) -> AsyncIterator[Item]:
    """Items of either kind of iterable."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


class PredictStream:
    """One pass over the items.

    Args:
        max_in_flight: Items sent and not yet taken by the consumer: a slow consumer slows the
            sender.
        deadline: When the whole pass must be over.
    """

    def __init__(
        self,
        transport: Transport,
        stub: InferenceServiceAsyncStub,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        max_in_flight: int,
        deadline: Deadline,
    ) -> None:
        self._transport = transport
        self._stub = stub
        self._items = items
        self._deadline = deadline
        self._free = asyncio.Semaphore(max_in_flight)
        self._unanswered: dict[int, _Sent] = {}
        self._outbox: asyncio.Queue[int | None] = asyncio.Queue()
        self._in_call: set[int] = set()
        self._is_fed = False

    async def answers(self) -> AsyncIterator[Answer]:
        """Answers in the order they finish.

        Raises:
            HmiError: The stream itself failed, and not in a way that another try could mend.
        """
        feeder = asyncio.create_task(self._feed())
        attempt = 0
        try:
            while not (self._is_fed and not self._unanswered):
                call = self._open()
                try:
                    while (answer := await self._next(call)) is not None:
                        attempt = 0
                        yield answer
                        self._free.release()
                    if self._unanswered:
                        raise Unavailable(
                            "the gateway ended the stream with items unanswered",
                            reason="STREAM_ENDED",
                        )
                except Unavailable as error:
                    attempt += 1
                    await self._transport.pause(error, attempt, self._deadline)
                finally:
                    await call.close()
            await feeder  # raises what the items' own iterator raised
        finally:
            feeder.cancel()
            await asyncio.gather(feeder, return_exceptions=True)

    async def _feed(self) -> None:
        try:
            index = 0
            async for item in as_async(self._items):
                await self._free.acquire()
                self._unanswered[index] = _Sent(item)
                self._outbox.put_nowait(index)
                index += 1
        finally:
            self._is_fed = True
            self._end_if_done()

    def _end_if_done(self) -> None:
        if self._is_fed and not self._unanswered:
            self._outbox.put_nowait(None)

    def _open(self) -> Duplex:
        self._in_call.clear()
        self._outbox = asyncio.Queue()
        for index in self._unanswered:
            self._outbox.put_nowait(index)
        self._end_if_done()
        call = self._stub.StreamPredict(
            timeout=self._deadline.remaining(), metadata=self._transport.metadata()
        )
        return Duplex(call, self._requests())

    async def _requests(self) -> AsyncIterator[pb.StreamPredictRequest]:
        while (index := await self._outbox.get()) is not None:
            sent = self._unanswered.get(index)
            if sent is None or index in self._in_call:
                continue  # a retry that came due after the stream had been taken up again
            self._in_call.add(index)
            yield sent.item.to_pb(index)

    async def _next(self, call: Duplex) -> Answer | None:
        """The next answer for the consumer; None at the end of the call."""
        while True:
            response: pb.StreamPredictResponse | None = await call.read()
            if response is None:
                return None
            index = response.item_id
            sent = self._unanswered.get(index)
            if sent is None:
                continue  # answered already, before the call broke
            error = from_status(response.error) if response.HasField("error") else None
            if error is not None and self._send_again(index, sent, error):
                continue
            del self._unanswered[index]
            self._end_if_done()
            return _answer(index, sent.item, response, error)

    def _send_again(self, index: int, sent: _Sent, error: HmiError) -> bool:
        delay = self._transport.retry.delay(error, sent.attempt)
        if delay is None or not self._deadline.allows(delay):
            return False
        sent.attempt += 1
        self._in_call.discard(index)
        asyncio.get_running_loop().call_later(delay, self._outbox.put_nowait, index)
        return True


def _answer(
    index: int, item: Item, response: pb.StreamPredictResponse, error: HmiError | None
) -> Answer:
    if error is not None:
        return Answer(index, item, None, None, error)
    prediction = prediction_from_pb(response.prediction)
    return Answer(index, item, prediction, Provenance.from_pb(response.provenance), None)
