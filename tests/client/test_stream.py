"""A stream answers every item once, whatever breaks on the way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from hmi.client import Answer, AsyncClient, Item
from hmi.errors import InvalidArgument, Unauthenticated, Unavailable
from hmi.inference.v1 import inference_pb2 as pb
from hmi.inference.v1 import inference_pb2_grpc
from services.common import errors as service_errors
from services.common.interceptor import RequestInterceptor
from tests.client.conftest import Serve


class _Gateway(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with the text's length; misbehaves as told."""

    def __init__(self) -> None:
        self.break_after: list[int] = []
        self.item_errors: dict[str, list[service_errors.HmiError]] = {}
        self.stream_error: service_errors.HmiError | None = None
        self.num_received = 0
        self.num_answered = 0
        self.max_in_flight = 0
        self.num_streams = 0

    async def StreamPredict(
        self, requests: AsyncIterator[pb.StreamPredictRequest], context: Any
    ) -> AsyncIterator[pb.StreamPredictResponse]:
        self.num_streams += 1
        if self.stream_error is not None:
            raise self.stream_error
        left = self.break_after.pop(0) if self.break_after else -1
        async for request in requests:
            self.num_received += 1
            self.max_in_flight = max(self.max_in_flight, self.num_received - self.num_answered)
            if left == 0:
                raise service_errors.Unavailable("stopping")
            left -= 1
            self.num_answered += 1
            yield self._answer(request)

    def _answer(self, request: pb.StreamPredictRequest) -> pb.StreamPredictResponse:
        errors = self.item_errors.get(request.input.text)
        if errors:
            return pb.StreamPredictResponse(
                item_id=request.item_id, error=errors.pop(0).to_status()
            )
        values = pb.Regression(values=[len(request.input.text)])
        return pb.StreamPredictResponse(
            item_id=request.item_id, prediction=pb.Prediction(regression=values)
        )


@pytest.fixture
def gateway() -> _Gateway:
    return _Gateway()


@pytest.fixture
async def client(serve: Serve, gateway: _Gateway) -> AsyncClient:
    def add(server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(gateway, server)

    return await serve(add, [RequestInterceptor("test")])


def _items(num: int) -> list[Item]:
    return [Item("m", "x" * (n + 1)) for n in range(num)]


def _check_each_once(answers: list[Answer], num: int) -> None:
    assert Counter(answer.index for answer in answers) == Counter(range(num))
    for answer in answers:
        prediction: Any = answer.unwrap()
        assert prediction.values == (len(answer.item.text),)


async def test_every_item_is_answered_once(client: AsyncClient) -> None:
    _check_each_once([answer async for answer in client.stream(_items(100))], 100)


async def test_no_items_no_answers(client: AsyncClient) -> None:
    assert [answer async for answer in client.stream([])] == []


async def test_broken_streams_are_taken_up_again(client: AsyncClient, gateway: _Gateway) -> None:
    gateway.break_after = [7, 0, 31]
    answers = [answer async for answer in client.stream(_items(100), max_in_flight=16)]
    _check_each_once(answers, 100)
    assert gateway.num_streams == 4


async def test_stream_that_never_gets_on_fails(client: AsyncClient, gateway: _Gateway) -> None:
    gateway.break_after = [0] * 20
    with pytest.raises(Unavailable):
        _ = [answer async for answer in client.stream(_items(3))]


async def test_items_in_flight_are_bounded(client: AsyncClient, gateway: _Gateway) -> None:
    async for _ in client.stream(_items(60), max_in_flight=5):
        await asyncio.sleep(0.002)
        assert gateway.num_received - gateway.num_answered <= 5
    assert gateway.max_in_flight <= 5


async def test_slow_consumer_slows_the_sender(client: AsyncClient, gateway: _Gateway) -> None:
    stream = client.stream(_items(60), max_in_flight=5)
    await anext(stream)
    await asyncio.sleep(0.1)
    assert gateway.num_received <= 6
    await stream.aclose()  # type: ignore[attr-defined]


async def test_item_error_leaves_the_others_alone(client: AsyncClient, gateway: _Gateway) -> None:
    gateway.item_errors["xx"] = [service_errors.InvalidArgument("input.text", "is odd")]
    answers = {answer.index: answer async for answer in client.stream(_items(5))}
    assert isinstance(answers[1].error, InvalidArgument)
    assert answers[1].error.field == "input.text"
    assert [answers[n].error for n in (0, 2, 3, 4)] == [None] * 4


async def test_item_told_to_wait_is_sent_again(client: AsyncClient, gateway: _Gateway) -> None:
    gateway.item_errors["xx"] = [
        service_errors.ResourceExhausted("quota", retry_after_s=0.02),
        service_errors.Unavailable("no executor"),
    ]
    answers = [answer async for answer in client.stream(_items(5), max_in_flight=2)]
    _check_each_once(answers, 5)


async def test_refused_stream_raises(client: AsyncClient, gateway: _Gateway) -> None:
    gateway.stream_error = service_errors.Unauthenticated("no key")
    with pytest.raises(Unauthenticated):
        _ = [answer async for answer in client.stream(_items(3))]


async def test_error_of_the_items_comes_after_their_answers(client: AsyncClient) -> None:
    def broken() -> Iterator[Item]:
        yield from _items(3)
        raise LookupError("the source is damaged")

    stream = client.stream(broken())
    answers = [await anext(stream) for _ in range(3)]
    with pytest.raises(LookupError):
        await anext(stream)
    _check_each_once(answers, 3)


async def test_consumer_may_leave_early(client: AsyncClient) -> None:
    stream = client.stream(_items(100))
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
