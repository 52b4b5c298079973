"""Streams: independent items answered as they finish, and messages that must keep coming.

Knows item ids and how many may be in work at a time; does not know what an item is. A full window
stops reading, so that the caller is held back by flow control.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from services.common.errors import DeadlineExceeded, InvalidArgument

M = TypeVar("M")


async def kept_alive(messages: AsyncIterator[M], idle_s: float) -> AsyncIterator[M]:
    """The messages, as long as one comes every `idle_s` seconds.

    Raises:
        DeadlineExceeded: None came: what the stream holds is wanted by others.
    """
    while True:
        try:
            async with asyncio.timeout(idle_s):
                message = await anext(messages, None)
        except TimeoutError:
            raise DeadlineExceeded(f"nothing came for {idle_s} s", reason="IDLE") from None
        if message is None:
            return
        yield message


class HasItemId(Protocol):
    """A message about one item."""

    @property
    def item_id(self) -> int: ...


Request = TypeVar("Request", bound=HasItemId)
Response = TypeVar("Response", bound=HasItemId)


class ItemStream(Generic[Request, Response]):
    """Answers each item of a stream exactly once.

    Args:
        answer: Answers one item; must turn the item's own errors into a response.
        window: Items in work at a time.
    """

    def __init__(self, answer: Callable[[Request], Awaitable[Response]], window: int) -> None:
        self._answer = answer
        self._window = asyncio.Semaphore(window)
        self._finished: asyncio.Queue[Response | BaseException | None] = asyncio.Queue()
        self._in_work: dict[int, asyncio.Task[None]] = {}
        self._is_read = False

    async def run(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Response, None]:
        """The answers, in the order they finish; leaving early cancels what is in work.

        Raises:
            InvalidArgument: An item_id is in work already.
        """
        reader = asyncio.create_task(self._read(requests))
        try:
            while (response := await self._finished.get()) is not None:
                if isinstance(response, BaseException):
                    raise response
                yield response
                # Only now: what a slow caller does not take away counts as in work.
                self._window.release()
        finally:
            reader.cancel()
            for task in self._in_work.values():
                task.cancel()
            await asyncio.gather(reader, *self._in_work.values(), return_exceptions=True)

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        try:
            async for request in requests:
                await self._window.acquire()
                if request.item_id in self._in_work:
                    raise InvalidArgument("item_id", f"{request.item_id} is in flight already")
                self._in_work[request.item_id] = asyncio.create_task(self._work(request))
        except Exception as error:
            self._finished.put_nowait(error)
            return
        self._is_read = True
        self._end_if_done()

    async def _work(self, request: Request) -> None:
        try:
            self._finished.put_nowait(await self._answer(request))
        except Exception as error:
            self._finished.put_nowait(error)
        finally:
            del self._in_work[request.item_id]
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._is_read and not self._in_work:
            self._finished.put_nowait(None)
