"""Streams, shared memory and pages: the small parts that hold others back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import DeadlineExceeded, InvalidArgument
from services.gateway.budget import ByteBudget
from services.gateway.paging import page
from services.gateway.streams import ItemStream, kept_alive


@dataclass
class Message:
    item_id: int


async def messages(count: int, read: list[int]) -> AsyncIterator[Message]:
    for i in range(count):
        read.append(i)
        yield Message(i)


async def test_a_slow_caller_is_held_back_by_the_window() -> None:
    read: list[int] = []

    async def answer(message: Message) -> Message:
        return message

    stream = ItemStream(answer, window=4).run(messages(100, read))
    assert (await anext(stream)).item_id == 0
    await asyncio.sleep(0.05)  # time in which too much could be read
    assert len(read) <= 6
    rest = [message.item_id async for message in stream]
    assert rest == list(range(1, 100))


async def test_leaving_a_stream_cancels_what_is_in_work() -> None:
    cancelled: list[int] = []

    async def answer(message: Message) -> Message:
        if message.item_id == 0:
            return message
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(message.item_id)
        return message

    stream = ItemStream(answer, window=8).run(messages(5, []))
    await anext(stream)
    await asyncio.sleep(0.01)
    await stream.aclose()
    assert sorted(cancelled) == [1, 2, 3, 4]


async def test_an_upload_that_stops_coming_is_ended() -> None:
    async def stuck() -> AsyncIterator[Message]:
        yield Message(0)
        await asyncio.Event().wait()

    alive = kept_alive(stuck(), idle_s=0.02)
    assert (await anext(alive)).item_id == 0
    with pytest.raises(DeadlineExceeded):
        await anext(alive)


async def test_memory_is_shared_in_order_and_given_back() -> None:
    budget = ByteBudget(100)
    await budget.acquire(60)
    large = asyncio.create_task(budget.acquire(70))
    small = asyncio.create_task(budget.acquire(10))
    await asyncio.sleep(0)
    assert not large.done()
    assert not small.done()  # would fit, but the large one came first
    budget.release(60)
    await asyncio.gather(large, small)
    beyond = asyncio.create_task(budget.acquire(500))
    await asyncio.sleep(0)
    beyond.cancel()
    await asyncio.gather(beyond, return_exceptions=True)
    budget.release(70)
    budget.release(10)
    await budget.acquire(500)  # more than there is, alone


@given(st.sets(st.from_regex(r"\A[a-z][a-z0-9-]{0,8}\Z"), max_size=40), st.integers(1, 7))
def test_pages_hold_every_name_once_in_order(names: set[str], size: int) -> None:
    seen: list[str] = []
    token = ""
    while True:
        chosen, token = page(names, size, token)
        seen += chosen
        if not token:
            break
    assert seen == sorted(names)


def test_a_token_that_no_page_gave_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        page(["a"], 1, "../../x")
