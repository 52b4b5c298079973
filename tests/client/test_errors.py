"""Statuses become errors by table, with what their details say."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

import hmi.errors
from hmi.client import RetryPolicy
from hmi.errors import HmiError, Internal
from hmi.inference.v1 import inference_pb2 as pb
from hmi.inference.v1 import inference_pb2_grpc
from services.common import errors as service_errors
from services.common.interceptor import RequestInterceptor
from tests.client.conftest import Serve

CASES: list[tuple[service_errors.HmiError, dict[str, object]]] = [
    (service_errors.InvalidArgument("inputs[2].text", "is empty"), {"field": "inputs[2].text"}),
    (service_errors.Unauthenticated("no key", reason="NO_KEY"), {"reason": "NO_KEY"}),
    (service_errors.PermissionDenied("not an admin"), {}),
    (service_errors.NotFound("no such model"), {}),
    (service_errors.AlreadyExists("taken"), {}),
    (service_errors.FailedPrecondition("no active version"), {}),
    (
        service_errors.ResourceExhausted("quota", subject="tenant:a/x", retry_after_s=9.5),
        {"subject": "tenant:a/x", "retry_after": 9.5},
    ),
    (service_errors.Unavailable("full", retry_after_s=9.5), {"retry_after": 9.5}),
    (service_errors.DeadlineExceeded("late"), {}),
    (service_errors.DataLoss("torn"), {}),
    (service_errors.Internal("internal error"), {}),
]


@pytest.mark.parametrize(("raised", "expected"), CASES, ids=lambda c: type(c).__name__)
def test_status_becomes_the_error_of_the_same_name(
    raised: service_errors.HmiError, expected: dict[str, object]
) -> None:
    error = hmi.errors.from_status(raised.to_status())
    assert type(error).__name__ == type(raised).__name__
    assert error.message == raised.message
    assert error.reason == raised.reason
    assert {name: getattr(error, name) for name in expected} == expected


def test_unknown_code_is_internal() -> None:
    assert type(hmi.errors.from_status(status_pb2.Status(code=99, message="?"))) is Internal


class _Failing(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, error: service_errors.HmiError) -> None:
        self.error = error

    async def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        raise self.error


@pytest.mark.parametrize(("raised", "expected"), CASES, ids=lambda c: type(c).__name__)
async def test_error_crosses_the_wire_whole(
    raised: service_errors.HmiError, expected: dict[str, object], serve: Serve
) -> None:
    def add(server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Failing(raised), server)

    client = await serve(add, [RequestInterceptor("test")])
    with pytest.raises(HmiError) as caught:
        await client.predict("m", "text")
    assert type(caught.value).__name__ == type(raised).__name__
    assert {name: getattr(caught.value, name) for name in expected} == expected


def test_a_longer_wait_than_the_bound_is_not_waited_for() -> None:
    policy = RetryPolicy(max_s=5.0)
    assert policy.delay(hmi.errors.ResourceExhausted("quota", retry_after=60.0), 1) is None
    assert policy.delay(hmi.errors.ResourceExhausted("quota"), 1) is None
    delay = policy.delay(hmi.errors.ResourceExhausted("quota", retry_after=2.0), 1)
    assert delay is not None
    assert delay >= 2.0


def test_back_off_grows_and_stays_within_its_bound() -> None:
    policy = RetryPolicy(max_attempts=20, initial_s=0.1, max_s=1.0)
    error = hmi.errors.Unavailable("gone")
    delays = [policy.delay(error, attempt) for attempt in range(1, 20)]
    assert all(delay is not None and 0 < delay <= 1.0 for delay in delays)
    assert policy.delay(error, 20) is None
    assert policy.delay(hmi.errors.NotFound("none"), 1) is None
