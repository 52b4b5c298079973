"""Streams, shared memory and pages: the small parts that hold others back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import DeadlineExceeded, InvalidArgument
from services.gateway.budget import ByteBudget, Holding
from services.gateway.paging import page
from services.gateway.streams import ItemStream, Pace, Progress


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


async def pieces(sizes: list[int], pause_s: float) -> AsyncIterator[bytes]:
    for size in sizes:
        await asyncio.sleep(pause_s)
        yield b"x" * size


async def num_taken(progress: Progress, chunks: AsyncIterator[bytes], work_s: float = 0.0) -> int:
    num_bytes = 0
    while (chunk := await progress.next(chunks)) is not None:
        await asyncio.sleep(work_s)
        progress.add(len(chunk))
        num_bytes += len(chunk)
    return num_bytes


async def test_an_upload_that_stops_coming_or_drips_is_ended() -> None:
    for sizes, pause_s in (([10], 10.0), ([1] * 100, 0.02)):
        progress = Progress(Pace(window_s=0.1, min_bytes_per_s=1_000))
        with pytest.raises(DeadlineExceeded) as caught:
            await num_taken(progress, pieces(sizes, pause_s))
        assert caught.value.reason == "UPLOAD_TOO_SLOW"


async def test_an_upload_that_keeps_its_pace_may_take_its_time() -> None:
    progress = Progress(Pace(window_s=0.2, min_bytes_per_s=1_000))
    assert await num_taken(progress, pieces([60] * 30, 0.02)) == 1_800  # three windows


async def test_time_in_which_bytes_are_put_away_is_not_the_senders() -> None:
    progress = Progress(Pace(window_s=0.1, min_bytes_per_s=1_000))
    assert await num_taken(progress, pieces([1] * 10, 0.0), work_s=0.05) == 10


async def _waits(task: asyncio.Task[None]) -> bool:
    await asyncio.sleep(0)
    return not task.done()


async def test_memory_is_shared_in_order_and_given_back() -> None:
    budget = ByteBudget(100)
    first, beyond, large, small = (Holding(budget) for _ in range(4))
    await first.grow(90)
    await beyond.grow(30)  # the first that finds no room
    waiting = [asyncio.create_task(large.grow(70)), asyncio.create_task(small.grow(5))]
    assert await _waits(waiting[0])
    assert await _waits(waiting[1])
    beyond.release()
    # 95 would do, but the large one came first; and now it is the one that goes beyond.
    await asyncio.gather(*waiting[:1])
    assert budget.held_bytes == 160
    assert await _waits(waiting[1])
    first.release()
    await waiting[1]
    assert budget.held_bytes == 75
    large.release()
    small.release()
    small.release()
    assert budget.held_bytes == 0


async def test_memory_that_is_no_longer_wanted_is_not_taken() -> None:
    budget = ByteBudget(100)
    first, beyond, gone, last = (Holding(budget) for _ in range(4))
    await first.grow(100)
    await beyond.grow(10)
    waiting = [asyncio.create_task(gone.grow(100)), asyncio.create_task(last.grow(10))]
    assert await _waits(waiting[0])
    waiting[0].cancel()
    await asyncio.gather(waiting[0], return_exceptions=True)
    first.release()
    await waiting[1]
    assert (budget.held_bytes, gone.size_bytes) == (20, 0)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), max_size=40), st.randoms())
def test_growing_in_any_order_ends_and_holds_little_more_than_there_is(
    steps: list[tuple[int, int]], rng: random.Random
) -> None:
    """Five that hold on to what they have while they wait for more."""

    async def run() -> None:
        budget = ByteBudget(100)
        demands = [[size for who, size in steps if who == n] for n in range(5)]

        async def work(sizes: list[int]) -> None:
            with budget.holding() as held:
                for size in sizes:
                    await held.grow(size)
                    assert budget.held_bytes <= 100 + max(sum(sizes) for sizes in demands)
                    for _ in range(rng.randrange(3)):
                        await asyncio.sleep(0)

        async with asyncio.timeout(5):
            await asyncio.gather(*(work(sizes) for sizes in demands))
        assert budget.held_bytes == 0

    asyncio.run(run())


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
