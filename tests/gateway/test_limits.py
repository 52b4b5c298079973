"""Quotas in a clock of the test's own, leased from real budgets without a wire between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import ResourceExhausted, Unavailable
from services.gateway import quota_leases
from services.gateway.config import GatewaySettings
from services.gateway.limits import Charge, Limits
from services.gateway.quota_leases import QuotaLeases
from services.knowledge_store.quotas import Quotas


class Clock:
    now = 0.0


class Store:
    """What a gateway sees of the store: budgets, or nothing."""

    def __init__(self, clock: Clock) -> None:
        self.quotas = Quotas(lambda: clock.now)
        self.num_calls = 0
        self.is_up = True

    async def LeaseQuota(self, request: pb.LeaseQuotaRequest, **_: float) -> pb.LeaseQuotaResponse:
        self.num_calls += 1
        await asyncio.sleep(0)
        if not self.is_up:
            empty = grpc.aio.Metadata()
            raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, empty, empty)
        return pb.LeaseQuotaResponse(grants=self.quotas.lease(request.demands))


class World:
    """A store and gateways around it, in one clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Store(self.clock)
        self.exits = AsyncExitStack()

    async def gateway(self, num_gateways: int = 1, **settings: object) -> Limits:
        chosen = GatewaySettings.model_validate(
            {"knowledge_address": "x:1", "cache_dir": Path("/x"), **settings}
        )
        stub: Any = self.store
        leases = QuotaLeases(stub, lambda: num_gateways, lambda: self.clock.now)
        await self.exits.enter_async_context(leases.running())
        return Limits(chosen, leases)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    async with world.exits:
        yield world


def tenant(**quota: float) -> resources_pb2.Tenant:
    return resources_pb2.Tenant(name="acme", quota=resources_pb2.Quota(**quota))  # type: ignore[arg-type]


async def use(held: Limits, acme: resources_pb2.Tenant, num_tokens: int, longest: int = 1) -> None:
    """A request of so many tokens."""
    charge = await held.admit_request(acme, longest)
    await charge.take(num_tokens)


async def refused(held: Limits, acme: resources_pb2.Tenant) -> ResourceExhausted:
    with pytest.raises(ResourceExhausted) as caught:
        await held.admit_request(acme, 1)
    return caught.value


async def num_admitted(held: Limits, acme: resources_pb2.Tenant, num_asked: int) -> int:
    """How many of so many requests, one after another, are admitted."""
    num = 0
    for _ in range(num_asked):
        try:
            await held.admit_request(acme, 1)
        except ResourceExhausted:
            continue
        num += 1
    return num


async def settled() -> None:
    """Let leases that are asked for in the background come."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_request_rate_is_held_and_says_when_to_retry(world: World) -> None:
    held = await world.gateway()
    acme = tenant(requests_per_second=10)
    for _ in range(20):  # two seconds' burst
        await held.admit_request(acme, 1)
    error = await refused(held, acme)
    kinds = [type(detail) for detail in error.details()]
    assert error_details_pb2.RetryInfo in kinds
    assert error_details_pb2.QuotaFailure in kinds
    assert error.subject == "tenant:acme/requests_per_second"
    assert error.retry_after_s == pytest.approx(0.1)
    world.clock.now += error.retry_after_s + 1e-9
    await held.admit_request(acme, 1)


async def test_a_large_request_is_served_and_then_paid_off(world: World) -> None:
    held = await world.gateway()
    acme = tenant(tokens_per_second=100)
    await use(held, acme, 150)
    await use(held, acme, 200)  # 50 were left
    await settled()
    error = await refused(held, acme)
    assert error.retry_after_s == pytest.approx(1.51)
    world.clock.now += 1.52
    await held.admit_request(acme, 1)


async def test_a_request_of_more_than_the_burst_is_refused_by_name_and_leaves_no_debt(
    world: World,
) -> None:
    held = await world.gateway()
    acme = tenant(tokens_per_second=100)
    with pytest.raises(ResourceExhausted) as caught:
        await use(held, acme, 201)
    assert caught.value.reason == "REQUEST_TOO_LARGE"
    assert caught.value.subject == "tenant:acme/tokens_per_second"
    assert caught.value.retry_after_s is None
    assert "200" in caught.value.message
    await use(held, acme, 200)


async def test_a_request_in_pieces_is_bounded_as_one(world: World) -> None:
    held = await world.gateway()
    acme = tenant(tokens_per_second=100)
    charge = await held.admit_request(acme, 1)
    for _ in range(4):
        await charge.take(50)
    with pytest.raises(ResourceExhausted):
        await charge.take(50)
    await settled()
    assert ((await refused(held, acme)).retry_after_s or 0) <= 0.1


async def test_one_input_can_be_sent_whatever_the_quota_is(world: World) -> None:
    held = await world.gateway()
    acme = tenant(tokens_per_second=1)
    await use(held, acme, 512, longest=512)
    with pytest.raises(ResourceExhausted):
        await use(held, acme, 513, longest=512)


async def test_requests_admitted_together_do_not_pile_up_debts(world: World) -> None:
    """Each is admitted before any is tokenized; only one is charged beyond what there is."""
    held = await world.gateway()
    acme = tenant(tokens_per_second=100)
    charges = [await held.admit_request(acme, 1) for _ in range(50)]
    await charges[0].take(150)
    await charges[1].take(200)
    for charge in charges[2:]:
        with pytest.raises(ResourceExhausted) as caught:
            await charge.take(200)
        assert caught.value.reason == "QUOTA_EXCEEDED"
    assert (await refused(held, acme)).retry_after_s == pytest.approx(1.51)


async def test_one_of_many_gateways_gives_a_tenant_its_whole_quota(world: World) -> None:
    held, *_ = [await world.gateway(num_gateways=4) for _ in range(4)]
    acme = tenant(requests_per_second=100)
    assert await num_admitted(held, acme, 1_000) == 200


async def test_gateways_together_hold_the_quota(world: World) -> None:
    gateways = [await world.gateway(num_gateways=4) for _ in range(4)]
    acme = tenant(requests_per_second=100)
    admitted_at: list[float] = []
    for _ in range(100):  # two seconds
        for held in gateways:
            admitted_at += [world.clock.now] * await num_admitted(held, acme, 5)
        await settled()
        world.clock.now += 0.02
    # The burst and two seconds; the slices of four may be unused.
    assert 360 <= len(admitted_at) <= 400
    world.clock.now += 5.0
    for held in gateways:
        admitted_at += [world.clock.now] * await num_admitted(held, acme, 300)
    for first, begin in enumerate(admitted_at):
        for last in range(first, len(admitted_at)):
            took_s = admitted_at[last] - begin
            assert last - first + 1 <= 100 * (took_s + 2 + 4 * 0.1) + 1e-6


async def test_gateways_that_all_want_more_each_get_some(world: World) -> None:
    one, two = [await world.gateway(num_gateways=2) for _ in range(2)]
    acme = tenant(requests_per_second=100)
    admitted = [0, 0]
    for _ in range(1_000):  # ten seconds
        for place, held in enumerate((one, two)):
            admitted[place] += await num_admitted(held, acme, 3)
        world.clock.now += 0.01
    assert 1_150 <= sum(admitted) <= 1_200
    assert min(admitted) > 200


async def test_a_budget_of_little_burst_gives_its_whole_rate(world: World) -> None:
    held = await world.gateway(quota_burst_s=0.05)
    acme = tenant(requests_per_second=200)
    num = 0
    for _ in range(2_000):  # ten seconds
        num += await num_admitted(held, acme, 3)
        await settled()
        world.clock.now += 0.005
    assert 1_900 <= num <= 2_010


async def test_a_debt_at_one_gateway_is_paid_at_all(world: World) -> None:
    one, two = [await world.gateway(num_gateways=2) for _ in range(2)]
    acme = tenant(tokens_per_second=100)
    await use(one, acme, 150)
    await use(one, acme, 200)
    await settled()
    assert (await refused(two, acme)).retry_after_s == pytest.approx(1.51)


async def test_a_lease_is_used_and_renewed_without_waiting_for_the_store(world: World) -> None:
    held = await world.gateway()
    acme = tenant(requests_per_second=1_000)
    await held.admit_request(acme, 1)
    await settled()
    for _ in range(20):
        num_calls = world.store.num_calls
        for _ in range(60):  # more than half a slice
            admission = held.admit_request(acme, 1)
            with pytest.raises(StopIteration):  # it never waits
                admission.send(None)
        assert world.store.num_calls == num_calls
        await settled()
        assert world.store.num_calls == num_calls + 1
        world.clock.now += 0.06


async def test_refusing_does_not_ask_the_store_again(world: World) -> None:
    held = await world.gateway()
    acme = tenant(requests_per_second=10)
    await num_admitted(held, acme, 30)
    num_calls = world.store.num_calls
    assert await num_admitted(held, acme, 1_000) == 0
    assert world.store.num_calls == num_calls


async def test_what_is_not_used_goes_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quota_leases, "LEASE_S", 0.02)
    one, two = [await world.gateway(num_gateways=2) for _ in range(2)]
    acme = tenant(requests_per_second=100)
    assert await num_admitted(one, acme, 11) == 11  # and some are leased beyond
    await settled()
    num_of_two = await num_admitted(two, acme, 300)
    assert num_of_two < 189
    world.clock.now += 0.1  # in which 10 come
    await asyncio.sleep(0.05)  # the gateway's own round
    num_of_two += await num_admitted(two, acme, 300)
    assert num_of_two == 199


async def test_while_the_store_is_away_each_gateway_gives_its_share(world: World) -> None:
    one, two = [await world.gateway(num_gateways=2) for _ in range(2)]
    acme = tenant(requests_per_second=10)
    await one.admit_request(acme, 1)
    world.store.is_up = False
    assert await num_admitted(one, acme, 100) == 9  # half of the burst, one of which is used
    assert await num_admitted(two, acme, 100) == 10
    world.clock.now += 1.0
    assert await num_admitted(one, acme, 100) == 5
    assert await num_admitted(two, acme, 100) == 5


async def test_nobody_waits_for_a_store_that_is_away(world: World) -> None:
    held = await world.gateway()
    acme = tenant(requests_per_second=1_000)
    world.store.is_up = False
    await held.admit_request(acme, 1)
    num_calls = world.store.num_calls
    for _ in range(100):
        admission = held.admit_request(acme, 1)
        with pytest.raises(StopIteration):
            admission.send(None)
    await settled()
    assert world.store.num_calls == num_calls
    world.clock.now += 1.0
    await held.admit_request(acme, 1)  # asks in the background
    await settled()
    assert world.store.num_calls == num_calls + 1


async def test_an_answer_that_fits_no_demand_stops_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect of either side is as if the store were away."""
    held = await world.gateway()
    acme = tenant(requests_per_second=10)
    monkeypatch.setattr(world.store.quotas, "lease", lambda demands: [])
    assert await num_admitted(held, acme, 100) == 20


async def test_a_store_that_is_back_is_leased_from_again_and_told_of_debts(world: World) -> None:
    held = await world.gateway(num_gateways=2)
    acme = tenant(tokens_per_second=100)
    world.store.is_up = False
    await use(held, acme, 200)  # the share's burst is 100, and 50 a second come
    world.clock.now += 2.02
    await settled()
    world.store.is_up = True
    await use(held, acme, 200)
    await settled()
    # The share owes 199, and its burst of 100 twice: what the store's 200 may not know of.
    assert (await refused(held, acme)).retry_after_s == pytest.approx(2.0)


async def test_a_debt_paid_off_while_the_store_was_away_is_not_settled_again(world: World) -> None:
    held = await world.gateway(num_gateways=2)
    acme = tenant(tokens_per_second=100)
    world.store.is_up = False
    await use(held, acme, 200)  # the share's burst is 100, and 50 a second come
    await settled()
    world.clock.now += 4.1
    world.store.is_up = True
    other = resources_pb2.Tenant(name="other", quota=acme.quota)
    await use(held, other, 1)  # asks in the background
    await settled()
    await held.admit_request(acme, 1)


def contact(seed: int) -> Iterator[bool]:
    """Whether the store answers, every 50 ms: first as often as not for 0.75 s, then at random."""
    if seed == 0:
        while True:
            yield from [True] * 15 + [False] * 15
    chooser = random.Random(seed)
    while True:
        for is_up in (True, False):
            yield from [is_up] * chooser.choice([1, 3, 10, 20, 30, 50, 90])


def most_in_a_window(used: list[tuple[float, float]], rate: float) -> float:
    """Of what was used when (seconds, units): the most in any T seconds, less rate times T."""
    most, total, least_before = 0.0, 0.0, 0.0
    for at, amount in used:
        least_before = min(least_before, total - rate * at)
        total += amount
        most = max(most, total - rate * at - least_before)
    return most


@pytest.mark.parametrize("num_gateways", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
async def test_a_store_that_comes_and_goes_lets_nobody_use_more(
    world: World, seed: int, num_gateways: int
) -> None:
    gateways = [await world.gateway(num_gateways=num_gateways) for _ in range(num_gateways)]
    acme = tenant(requests_per_second=20)
    used: list[tuple[float, float]] = []
    chooser = random.Random(seed)
    for _, world.store.is_up in zip(range(600), contact(seed), strict=False):  # half a minute
        for held in chooser.sample(gateways, len(gateways)):
            if chooser.random() < 0.8:
                used.append((world.clock.now, await num_admitted(held, acme, 5)))
        await settled()
        world.clock.now += 0.05
    # Two bursts of two seconds; two slices at each gateway; and a second of their shares for those
    # that find the store again later than the first.
    later = quota_leases.RETRY_S * (num_gateways - 1) / num_gateways
    most = 20 * (2 * 2 + 2 * 0.1 * num_gateways + later)
    assert most_in_a_window(used, 20) <= most
    assert sum(amount for _, amount in used) >= 0.6 * 20 * 30


async def test_a_raised_quota_counts_at_once(world: World) -> None:
    held = await world.gateway()
    assert await num_admitted(held, tenant(requests_per_second=1), 10) == 2
    assert await num_admitted(held, tenant(requests_per_second=100), 300) == 198


async def test_concurrent_requests_share_an_answer_of_the_store(world: World) -> None:
    held = await world.gateway()
    acme = tenant(requests_per_second=10)
    results = await asyncio.gather(
        *(held.admit_request(acme, 1) for _ in range(50)), return_exceptions=True
    )
    assert sum(isinstance(result, Charge) for result in results) == 20
    assert sum(isinstance(result, ResourceExhausted) for result in results) == 30
    assert world.store.num_calls <= 3


async def test_a_request_that_is_given_up_takes_nothing(world: World) -> None:
    held = await world.gateway()
    acme = tenant(requests_per_second=1)
    admission = asyncio.create_task(held.admit_request(acme, 1))
    await asyncio.sleep(0)
    admission.cancel()
    await asyncio.gather(admission, return_exceptions=True)
    await settled()
    assert await num_admitted(held, acme, 10) == 2


async def test_without_a_quota_the_deployments_default_holds(world: World) -> None:
    unlimited = await world.gateway()
    bounded = await world.gateway(default_requests_per_second=1)
    assert await num_admitted(unlimited, tenant(), 1_000) == 1_000
    assert world.store.num_calls == 0
    assert await num_admitted(bounded, tenant(), 10) == 2


async def test_a_full_queue_is_refused_by_whose_it_is(world: World) -> None:
    held = await world.gateway(max_queued_items=100)
    with pytest.raises(ResourceExhausted):
        held.check_room(tenant(max_queued_items=5), 2, 4, 4)
    held.check_room(tenant(max_queued_items=5), 1, 4, 4)
    with pytest.raises(Unavailable):
        held.check_room(tenant(), 1, 0, 100)
