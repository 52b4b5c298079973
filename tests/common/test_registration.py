"""A member stays known, and what it uses stays held."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common import registration as module
from services.common.registration import Registration
from tests.common.knowledge import FakeStore, serving
from tests.common.test_follow import until


@asynccontextmanager
async def member(store: FakeStore, **options: list[str]) -> AsyncIterator[Registration]:
    """A member until the block is left; the options are read anew at each call."""
    async with serving(store) as stub:
        registration = Registration(
            stub,
            member_id="m",
            kind=pb.MEMBER_KIND_EXECUTOR,
            base_digests=lambda: options.get("bases", []),
            held_blobs=lambda: options.get("blobs", []),
        )
        async with registration.held("host:1"):
            yield registration


async def test_a_member_registers_renews_with_what_it_holds_and_leaves() -> None:
    store, blobs = FakeStore(), ["b", "a"]
    async with member(store, blobs=blobs):
        await until(lambda: store.calls.count("renew") >= 2)
        assert store.held_blobs == ["a", "b"]
        blobs.append("c")
        await until(lambda: store.held_blobs == ["a", "b", "c"])
    assert (store.member.member_id, store.member.address) == ("m", "host:1")
    assert store.calls[:2] == ["register", "renew"]
    assert store.calls[-1] == "unregister"
    assert store.calls.count("register") == 1


async def test_a_member_whose_lease_ended_registers_anew() -> None:
    store = FakeStore()
    async with member(store):
        await until(lambda: "renew" in store.calls)
        store.lost = 1
        await until(lambda: store.calls.count("register") == 2)


async def test_new_bases_are_announced_at_once() -> None:
    store, bases = FakeStore(), ["one"]
    async with member(store, bases=bases) as registration:
        await until(lambda: list(store.member.base_digests) == ["one"])
        bases.append("two")
        registration.announce()
        await until(lambda: list(store.member.base_digests) == ["one", "two"])


async def test_a_renewal_that_hangs_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.05)
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    store = FakeStore()
    store.is_silent = True
    async with member(store):
        await until(lambda: store.calls.count("renew") >= 3)
        store.is_silent = False
        await asyncio.sleep(0)
    assert store.calls.count("register") == 1


async def test_a_defect_does_not_end_the_membership(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    store, failures = FakeStore(), iter([ValueError("a defect")])

    def held() -> list[str]:
        for failure in failures:
            raise failure
        return ["a"]

    async with serving(store) as stub:
        registration = Registration(
            stub, member_id="m", kind=pb.MEMBER_KIND_GATEWAY, held_blobs=held
        )
        async with registration.held("host:1"):
            await until(lambda: store.held_blobs == ["a"])
