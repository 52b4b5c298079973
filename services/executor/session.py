"""One gateway's Execute stream: commands in, news out.

Knows the wire format and the gateway's credit; does not know batches or devices.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from hmi.executor.v1 import executor_pb2 as pb
from services.common.errors import (
    STOPPING,
    Cancelled,
    HmiError,
    Internal,
    InvalidArgument,
    Unavailable,
)
from services.executor.admission import Admission, key_from_pb
from services.executor.credit import CreditPool
from services.executor.dispatch import Dispatcher
from services.executor.engine.items import Event, Item
from services.executor.failpoints import Reach

logger = logging.getLogger(__name__)

_RESPONSE_BYTES = 4 << 20  # of outputs in one message, unless one output alone is larger
_OUTPUT_BYTES = 16 << 20  # of one item, well below what a gateway's channel takes


class Session:
    """A stream's items, credit and unsent news.

    Args:
        dispatcher: Runs items.
        admission: Makes items.
        pool: Where credit comes from.
        reach: Failpoints.
    """

    def __init__(
        self, dispatcher: Dispatcher, admission: Admission, pool: CreditPool, reach: Reach
    ) -> None:
        self._dispatcher = dispatcher
        self._admission = admission
        self._pool = pool
        self._credit = pool.open()
        self._reach = reach
        self._items: dict[int, Item] = {}  # unanswered, by the gateway's id
        self._unsent: list[tuple[int, Event | HmiError]] = []
        self._changed = asyncio.Event()
        self._is_open = True
        self._is_half_closed = False
        self._error: HmiError | None = None
        self.gateway_id = ""

    async def read(self, requests: AsyncIterator[pb.ExecuteRequest]) -> None:
        """Take commands until the gateway says no more; a broken rule ends the stream."""
        try:
            async for request in requests:
                self.handle(request)
        except HmiError as error:
            self.end(error)
        except Exception:
            logger.exception("a stream failed", extra={"gateway_id": self.gateway_id})
            self.end(Internal("internal error while reading the stream"))
        self._is_half_closed = True
        self.flush()

    def handle(self, request: pb.ExecuteRequest) -> None:
        """Do one message's commands, in order.

        Raises:
            InvalidArgument: No hello came first, a submit went beyond the credit, or it took the
                id of an unanswered item.
        """
        started: list[tuple[int, Item]] = []
        try:
            for command in request.commands:
                self._do(command, started)
        finally:
            if started:
                self._dispatcher.submit(started, self)
                self._reach("after_submit", len(started))
        self.flush()

    def post(self, item_id: int, event: Event) -> None:
        """News from the engine."""
        if event.is_final:
            item = self._items.pop(item_id)
            self._credit.restore(item.id, item.num_tokens)
        if self._is_open:
            self._unsent.append((item_id, event))

    def flush(self) -> None:
        """Send what there is."""
        self._changed.set()

    def end(self, error: HmiError) -> None:
        """End the stream with this error once its unsent news is out."""
        self._error = self._error or error
        self.flush()

    def close(self) -> None:
        """Cancel what is unanswered: nobody listens any more."""
        self._is_open = False
        self._pool.close()
        if self._items:
            self._dispatcher.cancel(list(self._items.values()))

    async def responses(self) -> AsyncIterator[pb.ExecuteResponse]:
        """News as it comes, in as few messages as their size allows.

        Raises:
            HmiError: The stream ended by `end`, or by a broken rule.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            while (response := self._response()).news:
                yield response
            if self._error is not None:
                raise self._error
            if self._is_half_closed and not self._items and not self._unsent:
                return

    def _response(self) -> pb.ExecuteResponse:
        response = pb.ExecuteResponse()
        unsent = self._take_unsent()
        if unsent:
            self._reach("before_event", len(unsent))
        for item_id, event in unsent:
            _write(response.news.add().event, item_id, event)
        num_tokens = self._credit.grant() if self.gateway_id else 0
        if num_tokens:
            response.news.add().credit.num_tokens = num_tokens
        return response

    def _take_unsent(self) -> list[tuple[int, Event | HmiError]]:
        """The oldest unsent news, as much as one message takes."""
        num_taken = num_bytes = 0
        for _, event in self._unsent:
            num_bytes += _num_bytes(event)
            if num_taken and num_bytes > _RESPONSE_BYTES:
                break
            num_taken += 1
        taken, self._unsent = self._unsent[:num_taken], self._unsent[num_taken:]
        return taken

    def _do(self, command: pb.Command, started: list[tuple[int, Item]]) -> None:
        kind = command.WhichOneof("command")
        if kind == "hello":
            self.gateway_id = command.hello.gateway_id
        elif not self.gateway_id:
            raise InvalidArgument("commands", "the first must be a hello with a gateway_id")
        elif kind == "submit":
            self._submit(command.submit, started)
        elif kind == "hint":
            self._dispatcher.prefetch(key_from_pb(command.hint.key), command.hint.table_version)
        elif kind == "cancel":
            self._cancel(command.cancel.item_id, started)

    def _submit(self, submit: pb.Submit, started: list[tuple[int, Item]]) -> None:
        num_tokens = len(submit.token_ids)
        if submit.item_id in self._items:
            raise InvalidArgument("commands.submit.item_id", f"{submit.item_id} is unanswered")
        self._credit.spend(num_tokens)
        try:
            if self._dispatcher.is_stopping:
                raise Unavailable("the executor is stopping", reason=STOPPING)
            item = self._admission.admit(submit)
        except HmiError as error:
            self._credit.refund(num_tokens)
            self._unsent.append((submit.item_id, error))
            return
        self._items[submit.item_id] = item
        if self._dispatcher.is_cold(item):
            self._credit.park(item.id, num_tokens)
        started.append((submit.item_id, item))

    def _cancel(self, item_id: int, started: list[tuple[int, Item]]) -> None:
        item = self._items.get(item_id)
        if item is None:
            return
        if (item_id, item) in started:
            started.remove((item_id, item))
            self.post(item_id, Event(item, error=Cancelled("the item was cancelled")))
        else:
            self._dispatcher.cancel([item])


def _num_bytes(event: Event | HmiError) -> int:
    """Bytes of the output that is sent, if one is."""
    if isinstance(event, HmiError) or event.output is None or event.output.nbytes > _OUTPUT_BYTES:
        return 0
    return event.output.nbytes


def _write(target: pb.Event, item_id: int, event: Event | HmiError) -> None:
    """An event in the wire's form; an error alone is that of an item that never started."""
    target.item_id = item_id
    if isinstance(event, HmiError):
        target.is_final = True
        target.error.CopyFrom(event.to_status())
        return
    target.sequence = event.sequence
    target.is_final = event.is_final
    if event.error is not None:
        target.error.CopyFrom(event.error.to_status())
    elif event.output is not None and event.output.nbytes > _OUTPUT_BYTES:
        shape = "x".join(map(str, event.output.shape))
        refusal = InvalidArgument(
            "token_ids", f"the output would have {shape} numbers, more than an answer can hold"
        )
        target.error.CopyFrom(refusal.to_status())
    elif event.output is not None:
        target.output.shape.extend(event.output.shape)
        target.output.data = event.output.astype("<f4", copy=False).tobytes()
