"""Streams: independent items answered as they finish, and bytes that must keep coming.

Knows item ids and how many may be in work at a time; does not know what an item is. A full window
stops reading, so that the caller is held back by flow control.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.common.errors import DeadlineExceeded, InvalidArgument

M = TypeVar("M")


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast bytes must come: what a stream holds meanwhile is wanted by others.

    Attributes:
        window_s: A stream may be waited for so long in which it brings less than the rate says.
        min_bytes_per_s: The rate; 0 asks for any byte.
    """

    window_s: float
    min_bytes_per_s: float

    @property
    def min_bytes(self) -> int:
        """Bytes that must come in a window."""
        return max(1, int(self.window_s * self.min_bytes_per_s))


class Progress:
    """What came of one stream since a window began, and how long it was waited for: only that
    counts, not how long the bytes took to be put away."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._waited_s = 0.0
        self._num_bytes = 0

    def restart(self) -> None:
        """Begin a window."""
        self._waited_s, self._num_bytes = 0.0, 0

    def add(self, num_bytes: int) -> None:
        """Bytes came; a new window begins once they are enough."""
        self._num_bytes += num_bytes
        if self._num_bytes >= self._pace.min_bytes:
            self.restart()

    async def next(self, messages: AsyncIterator[M]) -> M | None:
        """The next message; None at the end.

        Raises:
            DeadlineExceeded: Too few bytes came in the window.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            async with asyncio.timeout(max(0.0, self._pace.window_s - self._waited_s)):
                return await anext(messages, None)
        except TimeoutError:
            raise DeadlineExceeded(
                f"{self._num_bytes} bytes came in {self._pace.window_s} s, and "
                f"{self._pace.min_bytes} at least must",
                reason="UPLOAD_TOO_SLOW",
            ) from None
        finally:
            self._waited_s += loop.time() - began


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
