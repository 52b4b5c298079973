"""The in-memory copy of the store, message by message."""

from __future__ import annotations

import asyncio
import hashlib

import pytest

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import FailedPrecondition, NotFound, Unauthenticated, Unavailable
from services.gateway.auth import Authenticator
from services.gateway.mirror import Mirror


class Clock:
    now = 100.0


def tenant(name: str) -> pb.Change:
    return pb.Change(tenant=resources_pb2.Tenant(name=name))


def key(secret_sha256: bytes, *, revoked: bool = False) -> pb.Change:
    api_key = resources_pb2.ApiKey(
        key_id="k", tenant="acme", role=resources_pb2.ROLE_TENANT, revoke_time={"seconds": 1}
    )
    if not revoked:
        api_key.ClearField("revoke_time")
    return pb.Change(key=pb.Key(api_key=api_key, secret_sha256=secret_sha256))


def version(number: int) -> pb.Change:
    return pb.Change(
        version=resources_pb2.Version(tenant="acme", model="topic", number=number, digest="d")
    )


def model(*traffic: tuple[int, int]) -> pb.Change:
    targets = [resources_pb2.TrafficTarget(version=v, percent=p) for v, p in traffic]
    return pb.Change(model=resources_pb2.Model(tenant="acme", name="topic", traffic=targets))


def snapshot(*changes: pb.Change, is_end: bool = True, revision: int = 1) -> pb.WatchResponse:
    return pb.WatchResponse(
        revision=revision, is_snapshot=True, is_snapshot_end=is_end, changes=changes
    )


def filled(clock: Clock, *changes: pb.Change) -> Mirror:
    mirror = Mirror(lambda: clock.now)
    mirror.apply(snapshot(*changes))
    return mirror


def test_a_snapshot_counts_once_it_is_complete() -> None:
    mirror = filled(Clock(), tenant("old"))
    mirror.apply(snapshot(tenant("new"), is_end=False, revision=9))
    assert set(mirror.state.tenants) == {"old"}
    mirror.interrupted()
    mirror.apply(snapshot(tenant("other"), revision=10))
    assert set(mirror.state.tenants) == {"other"}
    assert mirror.revision == 10


def test_a_deleted_tenant_takes_its_keys_and_models_along() -> None:
    mirror = filled(Clock(), tenant("acme"), key(b"h"), version(1), model((1, 100)))
    mirror.apply(
        pb.WatchResponse(
            revision=2,
            changes=[pb.Change(tenant=resources_pb2.Tenant(name="acme"), is_deleted=True)],
        )
    )
    assert not mirror.state.keys_by_hash
    with pytest.raises(NotFound):
        mirror.version("acme", "topic", 0)


def test_versions_are_chosen_by_traffic_or_by_name() -> None:
    mirror = filled(Clock(), version(1), version(2), model((1, 75), (2, 25)))
    chosen = [mirror.version("acme", "topic", 0).pb.number for _ in range(100)]
    assert (chosen.count(1), chosen.count(2)) == (75, 25)
    assert len(set(chosen[:8])) == 2  # spread, not in blocks
    assert mirror.version("acme", "topic", 2).pb.number == 2
    with pytest.raises(NotFound):
        mirror.version("acme", "topic", 3)
    mirror.apply(pb.WatchResponse(revision=2, changes=[model()]))
    with pytest.raises(FailedPrecondition):
        mirror.version("acme", "topic", 0)


def test_keys_are_believed_for_the_stated_time_after_the_store_was_heard() -> None:
    clock = Clock()
    digest = hashlib.sha256(b"secret").digest()
    mirror = filled(clock, tenant("acme"), key(digest))
    auth = Authenticator(mirror, max_staleness_s=30)
    metadata = (("authorization", "Bearer secret"),)
    caller = auth.tenant_caller(metadata)
    clock.now += 29
    assert auth.tenant_caller(metadata) == caller
    clock.now += 2
    with pytest.raises(Unavailable):
        auth.tenant_caller(metadata)
    with pytest.raises(Unavailable):
        auth.check_still_valid(caller)
    mirror.apply(pb.WatchResponse(revision=1))  # a sign of life
    auth.check_still_valid(caller)
    mirror.apply(pb.WatchResponse(revision=2, changes=[key(digest, revoked=True)]))
    with pytest.raises(Unauthenticated):
        auth.check_still_valid(caller)
    with pytest.raises(Unauthenticated):
        auth.tenant_caller(metadata)


async def test_writers_wait_until_their_change_is_seen() -> None:
    mirror = filled(Clock())
    waiting = asyncio.create_task(mirror.until(lambda: "acme" in mirror.state.tenants))
    await asyncio.sleep(0)
    mirror.apply(pb.WatchResponse(revision=2, changes=[tenant("other")]))
    await asyncio.sleep(0)
    assert not waiting.done()
    mirror.apply(pb.WatchResponse(revision=3, changes=[tenant("acme")]))
    assert await waiting
    assert not await mirror.until(lambda: False, timeout_s=0.01)
