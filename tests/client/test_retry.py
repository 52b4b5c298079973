"""What is tried again, what is not, and when a deadline ends it."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest

from hmi.admin.v1 import model_pb2, model_pb2_grpc, tenant_pb2, tenant_pb2_grpc
from hmi.client import AsyncClient
from hmi.errors import DeadlineExceeded, InvalidArgument, NotFound, Unavailable
from hmi.inference.v1 import inference_pb2 as pb
from hmi.inference.v1 import inference_pb2_grpc
from services.common.errors import HmiError, ResourceExhausted
from services.common.errors import NotFound as NotFoundStatus
from services.common.errors import Unavailable as UnavailableStatus
from services.common.interceptor import RequestInterceptor
from tests.client.conftest import FAST, Serve

ANSWER = pb.PredictResponse(
    predictions=[pb.Prediction(regression=pb.Regression(values=[0.5]), num_tokens=3)]
)


class _Scripted(
    inference_pb2_grpc.InferenceServiceServicer,
    tenant_pb2_grpc.TenantServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
):
    """Raises the scripted errors in turn, then answers."""

    def __init__(self, *errors: HmiError) -> None:
        self.errors = list(errors)
        self.request_ids: list[str] = []
        self.num_calls = 0

    def _next(self) -> None:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        self._next()
        return ANSWER

    async def CreateTenant(self, request: Any, context: Any) -> tenant_pb2.CreateTenantResponse:
        self.request_ids.append(request.request_id)
        self._next()
        return tenant_pb2.CreateTenantResponse(tenant=request.tenant)

    async def CreateApiKey(self, request: Any, context: Any) -> tenant_pb2.CreateApiKeyResponse:
        self._next()
        return tenant_pb2.CreateApiKeyResponse()

    async def DeleteModel(self, request: Any, context: Any) -> model_pb2.DeleteModelResponse:
        self._next()
        return model_pb2.DeleteModelResponse()


async def _client(serve: Serve, scripted: _Scripted) -> AsyncClient:
    def add(server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(scripted, server)
        tenant_pb2_grpc.add_TenantServiceServicer_to_server(scripted, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(scripted, server)

    return await serve(add, [RequestInterceptor("test")])


async def test_unavailable_is_tried_again_until_answered(serve: Serve) -> None:
    scripted = _Scripted(UnavailableStatus("busy"), UnavailableStatus("busy"))
    client = await _client(serve, scripted)
    answers = await client.predict("m", "text")
    assert answers[0].num_tokens == 3
    assert scripted.num_calls == 3


async def test_tries_end_at_their_number(serve: Serve) -> None:
    scripted = _Scripted(*(UnavailableStatus("busy") for _ in range(10)))
    client = await _client(serve, scripted)
    with pytest.raises(Unavailable):
        await client.predict("m", "text")
    assert scripted.num_calls == FAST.max_attempts


async def test_used_up_quota_is_waited_for_as_told(serve: Serve) -> None:
    scripted = _Scripted(ResourceExhausted("quota", retry_after_s=0.15))
    client = await _client(serve, scripted)
    begin = time.monotonic()
    await client.predict("m", "text")
    assert time.monotonic() - begin >= 0.15


async def test_deadline_holds_for_all_tries_together(serve: Serve) -> None:
    scripted = _Scripted(*(UnavailableStatus("busy", retry_after_s=0.1) for _ in range(10)))
    client = await _client(serve, scripted)
    begin = time.monotonic()
    with pytest.raises((Unavailable, DeadlineExceeded)):
        await client.predict("m", "text", timeout=0.25)
    assert time.monotonic() - begin < 1.0
    assert scripted.num_calls < FAST.max_attempts


async def test_create_is_repeated_under_one_request_id(serve: Serve) -> None:
    scripted = _Scripted(UnavailableStatus("busy"))
    client = await _client(serve, scripted)
    created = await client.create_tenant("acme")
    assert len(scripted.request_ids) == 2
    assert len(set(scripted.request_ids)) == 1
    assert scripted.request_ids[0]
    assert created.key is None  # the repeat's answer holds no secret


async def test_what_might_happen_twice_is_not_repeated(serve: Serve) -> None:
    scripted = _Scripted(UnavailableStatus("busy"))
    client = await _client(serve, scripted)
    with pytest.raises(Unavailable):
        await client.create_api_key("acme")
    assert scripted.num_calls == 1


async def test_deletion_whose_answer_was_lost_succeeds(serve: Serve) -> None:
    client = await _client(serve, _Scripted(UnavailableStatus("lost"), NotFoundStatus("gone")))
    await client.delete_model("m")


async def test_deletion_of_nothing_is_not_found(serve: Serve) -> None:
    client = await _client(serve, _Scripted(NotFoundStatus("none")))
    with pytest.raises(NotFound):
        await client.delete_model("m")


async def test_pairs_must_match_texts(serve: Serve) -> None:
    client = await _client(serve, _Scripted())
    with pytest.raises(InvalidArgument) as caught:
        await client.predict("m", ["a", "b"], pairs=["c"])
    assert caught.value.field == "pairs"


async def test_nobody_there_is_unavailable() -> None:
    async with AsyncClient("127.0.0.1:1", retry=FAST) as client:
        with pytest.raises(Unavailable):
            await client.predict("m", "text")
