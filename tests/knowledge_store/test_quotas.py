"""Shared budgets: what all gateways together take."""

from __future__ import annotations

import math
from typing import Any

import pytest
from grpc import StatusCode
from hypothesis import given
from hypothesis import strategies as st

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import InvalidArgument
from services.knowledge_store.quotas import Quotas
from tests.knowledge_store.stores import Store, fails


class Clock:
    now = 0.0


def demand(wanted: float, balance: float = 0.0, **fields: Any) -> pb.QuotaDemand:
    given = {"budget": "acme/tokens", "rate": 10.0, "burst": 20.0}
    return pb.QuotaDemand(wanted=wanted, balance=balance, **given | fields)


def lease(quotas: Quotas, wanted: float, balance: float = 0.0) -> pb.QuotaGrant:
    (grant,) = quotas.lease([demand(wanted, balance)])
    return grant


def test_no_more_is_granted_than_there_is() -> None:
    clock = Clock()
    quotas = Quotas(lambda: clock.now)
    assert lease(quotas, 15).granted == 15
    rest = lease(quotas, 15)
    assert (rest.granted, rest.retry_s) == (5, pytest.approx(0.1))
    assert lease(quotas, 1).granted == 0
    clock.now += 0.25
    assert lease(quotas, 15).granted == 2
    assert lease(quotas, 0).retry_s == 0


def test_what_is_given_back_is_there_for_others() -> None:
    quotas = Quotas(lambda: 0.0)
    assert lease(quotas, 20).granted == 20
    assert lease(quotas, 0, balance=8).granted == 0
    assert lease(quotas, 20).granted == 8


def test_a_debt_is_the_tenants_and_not_the_gateways() -> None:
    clock = Clock()
    quotas = Quotas(lambda: clock.now)
    lease(quotas, 20)
    assert lease(quotas, 5, balance=-100).granted == 0
    another = lease(quotas, 5)
    assert (another.granted, another.retry_s) == (0, pytest.approx(10.1))
    clock.now += 10.2
    assert lease(quotas, 5).granted == 2


@given(
    st.lists(
        st.tuples(st.floats(0, 0.5), st.integers(0, 30), st.floats(0, 1)), min_size=1, max_size=60
    )
)
def test_never_more_is_used_than_rate_and_burst_allow(
    rounds: list[tuple[float, int, float]],
) -> None:
    """Whatever is asked and given back in whatever order."""
    clock = Clock()
    quotas = Quotas(lambda: clock.now)
    used = held = 0.0
    for pause_s, wanted, part in rounds:
        clock.now += pause_s
        used += math.floor(held * part)
        balance = held - math.floor(held * part)
        held = lease(quotas, wanted, balance).granted
        assert held <= wanted
        assert used + held <= 10.0 * clock.now + 20.0 + 1e-6


def test_full_budgets_are_forgotten() -> None:
    clock = Clock()
    quotas = Quotas(lambda: clock.now)
    for start in range(0, 4_000, 1_000):
        quotas.lease([demand(1, budget=f"b{n}") for n in range(start, start + 1_000)])
    assert len(quotas) == 4_000
    clock.now += 60
    quotas.lease([demand(1, budget=f"c{n}") for n in range(100)])
    assert len(quotas) == 100


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"budget": ""}, "budget"),
        ({"budget": "x" * 257}, "budget"),
        ({"rate": 0.0}, "rate"),
        ({"rate": math.inf}, "rate"),
        ({"burst": 0.5}, "burst"),
        ({"balance": math.nan}, "balance"),
        ({"wanted": -1.0}, "wanted"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_granted(fields: dict[str, Any], field: str) -> None:
    quotas = Quotas(lambda: 0.0)
    wrong = demand(1)
    for name, value in fields.items():
        setattr(wrong, name, value)
    with pytest.raises(InvalidArgument) as caught:
        quotas.lease([demand(20), wrong])
    assert caught.value.field == f"demands[1].{field}"
    assert lease(quotas, 20).granted == 20


async def test_the_store_answers_a_grant_a_demand(store: Store) -> None:
    request = pb.LeaseQuotaRequest(demands=[demand(15), demand(15), demand(3, budget="other")])
    grants = (await store.stub.LeaseQuota(request)).grants
    assert [grant.granted for grant in grants] == [15, 5, 3]
    many = pb.LeaseQuotaRequest(demands=[demand(1)] * 10_001)
    await fails(store.stub.LeaseQuota(many), StatusCode.INVALID_ARGUMENT)
