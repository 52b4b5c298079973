"""What a flood of one tenant leaves to the others: counted in items and credit, never in time."""

from __future__ import annotations

import asyncio
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from tokenizers import Tokenizer

from hmi.admin.v1 import resources_pb2
from services.gateway import link as links
from services.gateway import tokenization
from services.gateway.domain import Item, Text, Version
from services.gateway.link import Link, LinkEvents
from tests.fakes import FakeExecutor
from tests.gateway.conftest import Stack, tokenizer_json, unique, until
from tests.gateway.test_predict import expect, request

item_ids = itertools.count()


@dataclass
class Tenant:
    name: str
    models: tuple[str, ...]


async def tenant_of(stack: Stack, *models: str, weight: float = 1.0) -> Tenant:
    name = unique("tenant")
    await stack.add_tenant(name, weight=weight)
    for model in models:
        await stack.add_model(name, model)
    return Tenant(name, models)


def ask(stack: Stack, tenant: Tenant, count: int, **options: Any) -> list[Any]:
    """Calls of two words each, of four tokens in the tests' tokenizer."""
    metadata = stack.metadata(tenant.name)
    return [
        stack.inference.Predict(request(tenant.models[0], "cat sat"), metadata=metadata, **options)
        for _ in range(count)
    ]


async def test_a_flood_leaves_credit_and_the_next_tenants_item_is_sent_at_once(
    stack: Stack,
) -> None:
    flood, quiet = await tenant_of(stack, "m"), await tenant_of(stack, "m")
    executor = await stack.executor(window=120)
    executor.gate.clear()
    flooding = ask(stack, flood, 60)
    await until(lambda: len(stack.app.router.queue) >= 30 and len(executor.submits) >= 15)
    sent = sum(len(submit.token_ids) for submit in executor.submits)
    assert 0.6 * 120 <= sent <= 2 / 3 * 120
    asked = ask(stack, quiet, 3)
    await until(lambda: [s.key.tenant for s in executor.submits].count(quiet.name) == 3)
    executor.gate.set()
    await asyncio.gather(*flooding, *asked)
    assert executor.num_answered in (0, 63)


async def test_weights_travel_with_items(stack: Stack) -> None:
    heavy = await tenant_of(stack, "m", weight=2.5)
    executor = await stack.executor()
    await asyncio.gather(*ask(stack, heavy, 1))
    assert executor.submits[0].weight == 2.5


def has_hints(executor: FakeExecutor, count: int) -> bool:
    return len(executor.hints) == count


async def test_a_hint_is_given_again_after_its_items_expired(stack: Stack) -> None:
    tenant = await tenant_of(stack, "running", "waiting")
    executor = await stack.executor(window=5)
    executor.gate.clear()
    running = ask(stack, tenant, 1)
    await until(lambda: len(executor.submits) == 1)
    waiting = Tenant(tenant.name, ("waiting",))
    for num_hints in (2, 3):  # the first was the running model's
        await expect(grpc.StatusCode.DEADLINE_EXCEEDED, ask(stack, waiting, 1, timeout=0.3)[0])
        await until(partial(has_hints, executor, num_hints))
    executor.gate.set()
    await asyncio.gather(*running)


async def test_tenants_take_turns_at_the_tokenizer() -> None:
    tokenizer = tokenization.without_limits(Tokenizer.from_str(tokenizer_json().decode()))
    order: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        batcher = tokenization._Batcher(tokenizer, pool, 1)

        def encode(tenant: str) -> asyncio.Future[Any]:
            future = batcher.encode(tenant, [Text("cat sat", None, "text", "pair")], False)
            future.add_done_callback(lambda _: order.append(tenant))
            return future

        flood = [encode("flood") for _ in range(500)]
        await asyncio.gather(*flood, encode("quiet"))
    # The first went alone; the next batch is of 64.
    assert order.index("quiet") <= 1 + tokenization.BATCH_TEXTS


async def test_what_waits_for_the_tokenizer_takes_room_in_the_queue(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = unique("tenant")
    await stack.add_tenant(name, max_queued_items=2)
    await stack.add_model(name, "m")
    await stack.executor()
    go_on, encode, num_begun = asyncio.Event(), tokenization.Tokenization.encode, 0

    async def slowly(*args: Any, **options: Any) -> Any:
        nonlocal num_begun
        num_begun += 1
        await go_on.wait()
        return await encode(*args, **options)

    monkeypatch.setattr(tokenization.Tokenization, "encode", slowly)
    tenant = Tenant(name, ("m",))
    for num_rounds in (1, 2):
        waiting = ask(stack, tenant, 2)
        await until(lambda: num_begun == 2 * num_rounds)  # noqa: B023 — awaited here
        await expect(grpc.StatusCode.RESOURCE_EXHAUSTED, ask(stack, tenant, 1)[0])
        go_on.set()
        await asyncio.gather(*waiting)
        go_on.clear()


def link() -> Link:
    link = Link("127.0.0.1:1", "", "gateway", cast(LinkEvents, SimpleNamespace()))
    link.credit = link.window = 300
    link.loads.moved(["hot"], [])
    return link


def item(tenant: str, cost: int, weight: float = 1.0, *, digest: str = "hot") -> Item:
    fields = {"tenant": tenant, "cost": cost, "weight": weight, "item_id": next(item_ids)}
    return cast(Item, SimpleNamespace(version=SimpleNamespace(digest=digest), **fields))


def fill(link: Link, *offers: tuple[str, float]) -> dict[str, int]:
    """Tokens in flight by tenant once nobody may send more; tokens are offered in turns."""
    taken = dict.fromkeys((tenant for tenant, _ in offers), 0)
    max_weight = max(weight for _, weight in offers)
    before = -1
    while before != link.load:
        before = link.load
        for tenant, weight in offers:
            if link.has_room(item(tenant, 1, weight), max_weight):
                link.credit -= 1
                link.loads.add(item(tenant, 1, weight))
                taken[tenant] += 1
    return taken


@pytest.mark.parametrize("num_floods", [1, 2, 5])
async def test_however_many_flood_credit_is_left_for_the_next(num_floods: int) -> None:
    full = link()
    fill(full, *((f"flood-{number}", 1.0) for number in range(num_floods)))
    assert full.credit >= 300 // (1 + 2 * num_floods)
    assert full.has_room(item("quiet", full.credit), 1.0)


async def test_cold_models_of_a_tenant_do_not_hold_back_its_hot_ones(stack: Stack) -> None:
    tenant = await tenant_of(stack, "cold", "hot")
    versions = stack.app.mirror.version
    cold, hot = (versions(tenant.name, model, 0).digest for model in tenant.models)
    executor = await stack.executor(window=120, resident=[hot], cold={cold})
    waiting = ask(stack, tenant, 100)  # 400 tokens, of which twice the credit may be sent
    await until(lambda: len(executor.submits) == 60)
    hot_ones = Tenant(tenant.name, ("hot",))
    async with asyncio.timeout(5):
        await asyncio.gather(*ask(stack, hot_ones, 20))
    assert [submit.key.digest for submit in executor.submits] == [cold] * 60 + [hot] * 20
    assert not any(call.done() for call in waiting)
    executor.load(cold)
    await asyncio.gather(*waiting, *ask(stack, hot_ones, 1))


async def test_a_model_that_was_evicted_while_its_items_wait_holds_back_only_them(
    stack: Stack,
) -> None:
    tenant = await tenant_of(stack, "cold", "hot")
    versions = stack.app.mirror.version
    cold, hot = (versions(tenant.name, model, 0).digest for model in tenant.models)
    executor = await stack.executor(window=120, resident=[hot, cold], cold={cold})
    link, _ = stack.app.router._links[executor.address]
    await until(lambda: cold in link.resident)
    executor.gate.clear()
    running = ask(stack, Tenant(tenant.name, ("hot",)), 20)
    await until(lambda: len(executor.submits) == 20)
    waiting = ask(stack, tenant, 100)
    await until(lambda: len(stack.app.router.queue) >= 80)
    link.loads.moved([], [cold])
    running += ask(stack, Tenant(tenant.name, ("hot",)), 20)
    executor.gate.set()
    async with asyncio.timeout(5):
        await asyncio.gather(*running)
    executor.load(cold)
    await asyncio.gather(*waiting)


async def test_loads_are_counted_where_they_belong_when_models_come_and_items_end() -> None:
    loads = link().loads
    hot, cold, gone = item("a", 5), item("a", 7, digest="cold"), item("a", 2, digest="cold")
    for one in (hot, cold, gone):
        loads.add(one)
    assert (loads.total, loads.of(hot), loads.of(cold)) == (14, 5, 9)
    loads.remove(gone)
    loads.moved(["cold"], [])
    assert (loads.total, loads.of(hot), loads.of(cold)) == (12, 12, 12)
    loads.moved([], ["cold"])
    loads.remove(cold)
    loads.remove(hot)
    assert (loads.total, loads.of(hot), loads.of(cold)) == (0, 0, 0)


async def test_hints_of_what_is_submitted_elsewhere_are_remembered_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(links, "_MAX_HINTED", 100)
    one = link()
    for number in range(1_000):
        one.hint(
            Version.from_pb(resources_pb2.Version(digest=f"{number}", table_version=f"t{number}"))
        )
    assert len(one._outbox) == 1_000
    assert len(one._hinted) <= 100
    assert len(one._tables) <= 100
    one.hint(Version.from_pb(resources_pb2.Version(digest="999", table_version="t999")))
    assert len(one._outbox) == 1_000


async def test_parts_follow_the_weights_of_those_who_wait() -> None:
    heavy, light = ("heavy", 3.0), ("light", 1.0)
    taken = fill(link(), heavy, heavy, heavy, light)  # offered as the fair queue would
    assert taken["heavy"] == pytest.approx(3 * taken["light"], rel=0.1)
    assert fill(link(), light) == {"light": 200}  # its weight matters beside others only
