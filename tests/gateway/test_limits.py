"""Quotas in a clock of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.rpc import error_details_pb2

from hmi.admin.v1 import resources_pb2
from services.common.errors import ResourceExhausted, Unavailable
from services.gateway.config import GatewaySettings
from services.gateway.limits import Limits


class Clock:
    now = 0.0


def limits(clock: Clock, num_gateways: int = 1, **settings: object) -> Limits:
    chosen = GatewaySettings.model_validate(
        {"knowledge_address": "x:1", "cache_dir": Path("/x"), **settings}
    )
    return Limits(chosen, lambda: num_gateways, lambda: clock.now)


def tenant(**quota: float) -> resources_pb2.Tenant:
    return resources_pb2.Tenant(name="acme", quota=resources_pb2.Quota(**quota))  # type: ignore[arg-type]


def test_a_request_rate_is_held_and_says_when_to_retry() -> None:
    clock = Clock()
    held = limits(clock)
    acme = tenant(requests_per_second=10)
    for _ in range(20):  # two seconds' burst
        held.admit_request(acme)
    with pytest.raises(ResourceExhausted) as caught:
        held.admit_request(acme)
    kinds = [type(detail) for detail in caught.value.details()]
    assert error_details_pb2.RetryInfo in kinds
    assert error_details_pb2.QuotaFailure in kinds
    assert caught.value.subject == "tenant:acme/requests_per_second"
    assert caught.value.retry_after_s == pytest.approx(0.1)
    clock.now += caught.value.retry_after_s + 1e-9
    held.admit_request(acme)


def test_a_large_request_is_served_and_then_paid_off() -> None:
    clock = Clock()
    held = limits(clock)
    acme = tenant(tokens_per_second=100)
    held.admit_request(acme)
    held.charge_tokens(acme, 1200)  # 200 were there
    with pytest.raises(ResourceExhausted) as caught:
        held.admit_request(acme)
    assert caught.value.retry_after_s == pytest.approx(10.01)
    clock.now += 10.02
    held.admit_request(acme)


def test_gateways_share_a_quota() -> None:
    held = limits(Clock(), num_gateways=4)
    acme = tenant(requests_per_second=10)
    for _ in range(5):
        held.admit_request(acme)
    with pytest.raises(ResourceExhausted):
        held.admit_request(acme)


def test_without_a_quota_the_deployments_default_holds() -> None:
    unlimited, bounded = limits(Clock()), limits(Clock(), default_requests_per_second=1)
    for _ in range(1000):
        unlimited.admit_request(tenant())
    bounded.admit_request(tenant())
    bounded.admit_request(tenant())
    with pytest.raises(ResourceExhausted):
        bounded.admit_request(tenant())


def test_a_full_queue_is_refused_by_whose_it_is() -> None:
    held = limits(Clock(), max_queued_items=100)
    with pytest.raises(ResourceExhausted):
        held.check_room(tenant(max_queued_items=5), 2, 4, 4)
    held.check_room(tenant(max_queued_items=5), 1, 4, 4)
    with pytest.raises(Unavailable):
        held.check_room(tenant(), 1, 0, 100)
