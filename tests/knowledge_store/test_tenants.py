"""Tenants and keys over RPC, with every documented error."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common.errors import InvalidArgument
from services.common.knowledge import open_channel
from services.knowledge_store.metadata import transaction
from tests.knowledge_store.stores import (
    ADMIN_SECRET,
    Store,
    View,
    add_base,
    add_tenant,
    create,
    fails,
    follow,
    new_key,
    new_version,
    push,
    running,
    secret_hash,
    snapshot,
)


def creation(name: str = "acme", key_id: str = "k1", request_id: str = "") -> pb.PutTenantRequest:
    return pb.PutTenantRequest(
        tenant=rpb.Tenant(name=name), is_create=True, first_key=new_key(key_id),
        request_id=request_id,
    )  # fmt: skip


async def test_a_tenant_is_created_with_its_key_and_default_weight(store: Store) -> None:
    tenant = (await store.stub.PutTenant(creation())).tenant
    assert tenant.weight == 1.0
    assert tenant.HasField("create_time")
    view = await snapshot(store)
    assert view["tenant"] == ["acme"]
    key = pb.Key.FromString(view.resources["key", "k1"])
    assert (key.api_key.tenant, key.api_key.role) == ("acme", rpb.ROLE_TENANT)
    assert key.secret_sha256 == secret_hash("secret of k1")


async def test_creating_a_tenant_twice_is_already_exists(store: Store) -> None:
    await store.stub.PutTenant(creation())
    await fails(store.stub.PutTenant(creation(key_id="k2")), StatusCode.ALREADY_EXISTS)
    assert (await snapshot(store))["key"] == ["admin", "k1"]


async def test_the_same_request_id_answers_with_the_tenant_and_does_nothing(store: Store) -> None:
    first = await store.stub.PutTenant(creation(request_id="r"))
    revision = (await snapshot(store)).revision
    again = await store.stub.PutTenant(creation(key_id="k2", request_id="r"))
    assert (first.is_repeat, again.is_repeat) == (False, True)
    assert again.tenant == first.tenant
    assert (await snapshot(store)).revision == revision
    other = store.stub.PutTenant(creation("other", "k3", request_id="r"))
    await fails(other, StatusCode.INVALID_ARGUMENT)


async def test_twenty_concurrent_creations_of_one_tenant_succeed_once(store: Store) -> None:
    calls = [store.stub.PutTenant(creation(key_id=f"k{number}")) for number in range(20)]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(outcome, pb.PutTenantResponse) for outcome in outcomes) == 1
    assert len((await snapshot(store))["key"]) == 2


async def test_an_update_changes_weight_and_quota_and_keeps_the_time(store: Store) -> None:
    before = (await store.stub.PutTenant(creation())).tenant
    changed = rpb.Tenant(name="acme", weight=3, quota=rpb.Quota(max_models=7))
    after = (await store.stub.PutTenant(pb.PutTenantRequest(tenant=changed))).tenant
    assert (after.weight, after.quota.max_models) == (3, 7)
    assert after.create_time == before.create_time


async def test_updating_or_deleting_an_unknown_tenant_is_not_found(store: Store) -> None:
    update = pb.PutTenantRequest(tenant=rpb.Tenant(name="nobody"))
    await fails(store.stub.PutTenant(update), StatusCode.NOT_FOUND)
    delete = pb.DeleteTenantRequest(tenant="nobody")
    await fails(store.stub.DeleteTenant(delete), StatusCode.NOT_FOUND)


@pytest.mark.parametrize(
    ("tenant", "field"),
    [
        (rpb.Tenant(name="../etc"), "tenant.name"),
        (rpb.Tenant(name=""), "tenant.name"),
        (rpb.Tenant(name="Upper"), "tenant.name"),
        (rpb.Tenant(name="a", weight=-1), "tenant.weight"),
        (rpb.Tenant(name="a", weight=float("nan")), "tenant.weight"),
        (
            rpb.Tenant(name="a", quota=rpb.Quota(tokens_per_second=-1)),
            "tenant.quota.tokens_per_second",
        ),
    ],
)
async def test_a_bad_field_of_a_tenant_is_named(store: Store, tenant: Any, field: str) -> None:
    request = pb.PutTenantRequest(tenant=tenant, is_create=True, first_key=new_key("k"))
    error = await fails(store.stub.PutTenant(request), StatusCode.INVALID_ARGUMENT)
    assert isinstance(error, InvalidArgument)
    assert error.field == field


async def test_deleting_a_tenant_deletes_all_that_is_its_own_and_nothing_else(
    store: Store,
) -> None:
    base = await add_base(store)
    await add_tenant(store, "acme")
    await add_tenant(store, "other")
    for model in ("a", "b"):
        await push(store, base, b"one", model)
        await push(store, base, b"two", model)
    await push(store, base, b"one", tenant="other")
    await store.stub.DeleteTenant(pb.DeleteTenantRequest(tenant="acme"))
    view = await snapshot(store)
    assert view["tenant"] == ["other"]
    assert view["key"] == ["admin", "key-other"]
    assert view["model"] == ["other/topics"]
    assert view["version"] == ["other/topics/1"]
    assert view["base"] == ["minilm"]


async def test_what_is_too_much_for_one_change_is_deleted_in_several_keys_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = await add_base(store)
    await add_tenant(store)
    await store.blobs.write(b"one")
    await create(store, *(new_version(base, b"one", f"m{n}") for n in range(100)))
    await create(store, *(new_version(base, b"one", "deep") for _ in range(200)))
    monkeypatch.setattr(transaction, "MAX_CHANGE_BYTES", 4_000)
    view = await snapshot(store)
    first = view.revision
    await store.stub.DeleteModel(pb.DeleteModelRequest(tenant="acme", model="deep"))
    await follow(store, view, lambda view: "acme/deep" not in view["model"])
    assert view.revision > first + 1
    assert len(view["version"]) == 100
    between = view.revision
    await store.stub.DeleteTenant(pb.DeleteTenantRequest(tenant="acme"))
    keys_by_revision: list[list[str]] = []

    def is_gone(view: View) -> bool:
        keys_by_revision.append(view["key"])
        return not view["tenant"]

    await follow(store, view, is_gone)
    assert view.revision > between + 1
    assert keys_by_revision[0] == ["admin"]
    assert (view["model"], view["version"]) == ([], [])
    assert view.num_snapshots == 1


async def test_a_tenant_of_a_deleted_ones_name_does_not_get_its_numbers_or_requests(
    store: Store,
) -> None:
    base = await add_base(store)
    await add_tenant(store)
    assert (await push(store, base, b"one", request_id="r")).number == 1
    await store.stub.DeleteTenant(pb.DeleteTenantRequest(tenant="acme"))
    await add_tenant(store)
    assert (await push(store, base, b"one", request_id="r")).number == 2


async def test_a_key_is_added_and_revoked(store: Store) -> None:
    await add_tenant(store)
    added = await store.stub.PutKey(pb.PutKeyRequest(key=new_key("k2", "acme")))
    assert added.api_key.HasField("create_time")
    again = await store.stub.PutKey(pb.PutKeyRequest(key=new_key("k2", "acme")))
    assert again == added
    revocation = pb.PutKeyRequest(key=pb.Key(api_key=rpb.ApiKey(key_id="k2")), revoke=True)
    revoked = await store.stub.PutKey(revocation)
    assert revoked.api_key.HasField("revoke_time")
    assert await store.stub.PutKey(revocation) == revoked
    kept = pb.Key.FromString((await snapshot(store)).resources["key", "k2"])
    assert kept.api_key == revoked.api_key


async def test_keys_of_nobody_are_not_found(store: Store) -> None:
    adding = pb.PutKeyRequest(key=new_key("k2", "nobody"))
    await fails(store.stub.PutKey(adding), StatusCode.NOT_FOUND)
    revoking = pb.PutKeyRequest(key=new_key("none"), revoke=True)
    await fails(store.stub.PutKey(revoking), StatusCode.NOT_FOUND)


async def test_another_secret_under_a_keys_id_is_already_exists(store: Store) -> None:
    await add_tenant(store)
    await store.stub.PutKey(pb.PutKeyRequest(key=new_key("k2", "acme")))
    other = new_key("k2", "acme")
    other.secret_sha256 = secret_hash("another")
    await fails(store.stub.PutKey(pb.PutKeyRequest(key=other)), StatusCode.ALREADY_EXISTS)


@pytest.mark.parametrize(
    "key",
    [
        new_key("", "acme"),
        new_key("admin", role=rpb.ROLE_ADMIN),
        new_key("a/b", "acme"),
        new_key("k", "acme", role=rpb.ROLE_UNSPECIFIED),
        new_key("k", "acme", role=rpb.ROLE_ADMIN),
        new_key("k", "", role=rpb.ROLE_TENANT),
        pb.Key(api_key=new_key("k", "acme").api_key, secret_sha256=b"short"),
    ],
)
async def test_a_malformed_key_is_refused(store: Store, key: pb.Key) -> None:
    await fails(store.stub.PutKey(pb.PutKeyRequest(key=key)), StatusCode.INVALID_ARGUMENT)


async def test_the_admin_key_is_kept_as_a_hash_and_replaced_by_another(tmp_path: Path) -> None:
    held = []
    for secret in (ADMIN_SECRET, ADMIN_SECRET, "another"):
        async with running(tmp_path, admin_key=secret) as store:
            view = await snapshot(store)
            held.append(pb.Key.FromString(view.resources["key", "admin"]))
    first, second, third = held
    assert first == second
    assert first.api_key.role == rpb.ROLE_ADMIN
    assert first.secret_sha256 == secret_hash(ADMIN_SECRET)
    assert third.secret_sha256 == secret_hash("another")


def revocation_of(key_id: str) -> pb.PutKeyRequest:
    return pb.PutKeyRequest(key=pb.Key(api_key=rpb.ApiKey(key_id=key_id)), revoke=True)


async def test_the_last_admin_key_is_not_revoked(store: Store) -> None:
    error = await fails(store.stub.PutKey(revocation_of("admin")), StatusCode.FAILED_PRECONDITION)
    assert "make another" in str(error)
    await store.stub.PutKey(pb.PutKeyRequest(key=new_key("k2", role=rpb.ROLE_ADMIN)))
    await store.stub.PutKey(revocation_of("admin"))
    await fails(store.stub.PutKey(revocation_of("k2")), StatusCode.FAILED_PRECONDITION)


async def test_a_revoked_admin_secret_does_not_come_back_with_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path) as store:
        await store.stub.PutKey(pb.PutKeyRequest(key=new_key("k2", role=rpb.ROLE_ADMIN)))
        await store.stub.PutKey(revocation_of("admin"))
    for secret, is_revoked in ((ADMIN_SECRET, True), ("another", False)):
        async with running(tmp_path, admin_key=secret) as store:
            view = await snapshot(store)
            held = pb.Key.FromString(view.resources["key", "admin"])
            assert held.api_key.HasField("revoke_time") is is_revoked


async def test_without_the_service_token_nothing_is_answered(store: Store) -> None:
    async with open_channel(store.address, "wrong") as channel:
        stub: Any = KnowledgeServiceStub(channel)
        await fails(stub.PutTenant(creation()), StatusCode.UNAUTHENTICATED)
        await fails(stub.StatBlob(pb.StatBlobRequest()), StatusCode.UNAUTHENTICATED)


async def test_the_model_quota_of_a_deleted_model_is_free_again(store: Store) -> None:
    base = await add_base(store)
    await add_tenant(store, max_models=1)
    await push(store, base, b"one", "a")
    (refused,) = await create(store, new_version(base, b"one", "b"))
    assert refused.error_code == StatusCode.RESOURCE_EXHAUSTED.value[0]
    await store.stub.DeleteModel(pb.DeleteModelRequest(tenant="acme", model="a"))
    assert (await push(store, base, b"one", "b")).number == 1
