"""Tenants, keys, models and traffic, through the gateway."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from hmi.admin.v1 import model_pb2, resources_pb2
from hmi.admin.v1 import tenant_pb2 as pb
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from hmi.admin.v1.tenant_pb2_grpc import TenantServiceStub
from services.common.logs import JsonFormatter
from tests.gateway.conftest import Stack, unique
from tests.gateway.test_predict import expect, request


async def test_a_created_tenants_key_works_at_once(stack: Stack) -> None:
    stub = TenantServiceStub(stack.channel)
    name = unique("acme")
    create = pb.CreateTenantRequest(
        tenant=resources_pb2.Tenant(name=name), request_id=unique("request")
    )
    created = await stub.CreateTenant(create, metadata=stack.as_admin)
    assert created.secret.startswith(f"hmi_{created.api_key.key_id}_")
    assert created.tenant.weight == 1.0
    repeated = await stub.CreateTenant(create, metadata=stack.as_admin)
    assert (repeated.tenant, repeated.secret) == (created.tenant, "")
    own = (("authorization", f"Bearer {created.secret}"),)
    seen = await stub.GetTenant(pb.GetTenantRequest(tenant=name), metadata=own)
    assert seen.tenant == created.tenant


async def test_a_tenant_sees_itself_only(stack: Stack) -> None:
    stub = TenantServiceStub(stack.channel)
    mine, theirs = unique("mine"), unique("theirs")
    await stack.add_tenant(mine)
    await stack.add_tenant(theirs)
    own = stack.metadata(mine)
    other = stub.GetTenant(pb.GetTenantRequest(tenant=theirs), metadata=own)
    await expect(grpc.StatusCode.NOT_FOUND, other)
    usage = stub.GetUsage(pb.GetUsageRequest(tenant=theirs), metadata=own)
    await expect(grpc.StatusCode.NOT_FOUND, usage)
    await expect(
        grpc.StatusCode.PERMISSION_DENIED, stub.ListTenants(pb.ListTenantsRequest(), metadata=own)
    )
    await expect(
        grpc.StatusCode.PERMISSION_DENIED,
        stub.CreateApiKey(pb.CreateApiKeyRequest(tenant=mine), metadata=own),
    )


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """What the authentication has logged meanwhile, as the process would write it."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonFormatter("gateway"))
    logger = logging.getLogger("services.gateway.auth")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(before)


async def test_an_admin_who_acts_for_a_tenant_is_logged(
    stack: Stack, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    name = unique("acme")
    await stack.add_tenant(name)
    await stack.add_model(name, "topic")
    stub = ModelServiceStub(stack.channel)
    for_tenant = (*stack.as_admin, ("x-hmi-tenant", name), ("x-request-id", "r-1"))
    listed = await stub.ListModels(model_pb2.ListModelsRequest(), metadata=for_tenant)
    assert [model.name for model in listed.models] == ["topic"]
    [line] = lines()
    [admin_key] = [
        key.api_key.key_id
        for key in stack.app.mirror.state.keys.values()
        if key.api_key.role == resources_pb2.ROLE_ADMIN
    ]
    assert (line["tenant"], line["key_id"], line["request_id"]) == (name, admin_key, "r-1")
    assert "secret" not in json.dumps(line)


async def test_a_tenant_acts_for_itself_only_and_unlogged(
    stack: Stack, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    mine, theirs = unique("mine"), unique("theirs")
    await stack.add_tenant(mine)
    await stack.add_tenant(theirs)
    await stack.add_model(theirs, "topic")
    stub = ModelServiceStub(stack.channel)
    for tenant in (theirs, "no-such-tenant"):
        call = stub.ListModels(
            model_pb2.ListModelsRequest(),
            metadata=(*stack.metadata(mine), ("x-hmi-tenant", tenant)),
        )
        await expect(grpc.StatusCode.PERMISSION_DENIED, call)
    own = (*stack.metadata(mine), ("x-hmi-tenant", mine))
    assert not (await stub.ListModels(model_pb2.ListModelsRequest(), metadata=own)).models
    assert lines() == []


async def test_keys_are_made_listed_and_revoked(stack: Stack) -> None:
    stub = TenantServiceStub(stack.channel)
    name = unique("acme")
    await stack.add_tenant(name)
    made = await stub.CreateApiKey(
        pb.CreateApiKeyRequest(tenant=name, role=resources_pb2.ROLE_TENANT),
        metadata=stack.as_admin,
    )
    listed = await stub.ListApiKeys(pb.ListApiKeysRequest(tenant=name), metadata=stack.as_admin)
    assert {key.key_id for key in listed.api_keys} == {f"key-{name}", made.api_key.key_id}
    fresh = (("authorization", f"Bearer {made.secret}"),)
    await stub.GetTenant(pb.GetTenantRequest(tenant=name), metadata=fresh)
    await stub.RevokeApiKey(
        pb.RevokeApiKeyRequest(key_id=made.api_key.key_id), metadata=stack.as_admin
    )
    revoked = stub.GetTenant(pb.GetTenantRequest(tenant=name), metadata=fresh)
    await expect(grpc.StatusCode.UNAUTHENTICATED, revoked)
    role = stub.CreateApiKey(
        pb.CreateApiKeyRequest(tenant=name, role=resources_pb2.ROLE_ADMIN), metadata=stack.as_admin
    )
    await expect(grpc.StatusCode.INVALID_ARGUMENT, role)


async def test_weights_and_quotas_change_and_tenants_go(stack: Stack) -> None:
    stub = TenantServiceStub(stack.channel)
    name = unique("acme")
    await stack.add_tenant(name)
    await stack.add_model(name, "topic")
    wanted = resources_pb2.Tenant(
        name=name, weight=2.5, quota=resources_pb2.Quota(tokens_per_second=7)
    )
    changed = await stub.UpdateTenant(
        pb.UpdateTenantRequest(tenant=wanted), metadata=stack.as_admin
    )
    assert (changed.tenant.weight, changed.tenant.quota.tokens_per_second) == (2.5, 7)
    await stub.DeleteTenant(pb.DeleteTenantRequest(tenant=name), metadata=stack.as_admin)
    gone = stack.inference.Predict(request("topic", "cat"), metadata=stack.metadata(name))
    await expect(grpc.StatusCode.UNAUTHENTICATED, gone)


@pytest.mark.parametrize(
    "tenant",
    [
        resources_pb2.Tenant(name="Bad Name"),
        resources_pb2.Tenant(name="good", weight=-1),
        resources_pb2.Tenant(name="good", weight=float("nan")),
        resources_pb2.Tenant(
            name="good", quota=resources_pb2.Quota(requests_per_second=float("inf"))
        ),
    ],
    ids=["name", "negative weight", "nan weight", "infinite quota"],
)
async def test_impossible_tenants_are_refused(stack: Stack, tenant: resources_pb2.Tenant) -> None:
    call = TenantServiceStub(stack.channel).CreateTenant(
        pb.CreateTenantRequest(tenant=tenant), metadata=stack.as_admin
    )
    await expect(grpc.StatusCode.INVALID_ARGUMENT, call)


async def test_traffic_moves_rolls_back_and_guards_its_versions(stack: Stack) -> None:
    name = unique("acme")
    await stack.add_tenant(name)
    await stack.add_model(name, "topic")
    await stack.add_model(name, "topic")
    stub, own = ModelServiceStub(stack.channel), stack.metadata(name)
    versions = await stub.ListVersions(model_pb2.ListVersionsRequest(model="topic"), metadata=own)
    assert [v.number for v in versions.versions] == [1, 2]
    rolled = await stub.RollBack(model_pb2.RollBackRequest(model="topic"), metadata=own)
    assert [t.version for t in rolled.model.traffic] == [1]
    half = [resources_pb2.TrafficTarget(version=1, percent=50)]
    wrong = stub.SetTraffic(model_pb2.SetTrafficRequest(model="topic", traffic=half), metadata=own)
    await expect(grpc.StatusCode.INVALID_ARGUMENT, wrong)
    active = stub.DeleteVersion(
        model_pb2.DeleteVersionRequest(model="topic", version=1), metadata=own
    )
    await expect(grpc.StatusCode.FAILED_PRECONDITION, active)
    await stub.DeleteVersion(model_pb2.DeleteVersionRequest(model="topic", version=2), metadata=own)
    pinned = await stub.SetPinned(
        model_pb2.SetPinnedRequest(model="topic", pinned=True), metadata=own
    )
    assert pinned.model.pinned
    await stub.DeleteModel(model_pb2.DeleteModelRequest(model="topic"), metadata=own)
    gone = stub.GetModel(model_pb2.GetModelRequest(model="topic"), metadata=own)
    await expect(grpc.StatusCode.NOT_FOUND, gone)


async def test_models_of_others_cannot_be_touched(stack: Stack) -> None:
    owner, stranger = unique("owner"), unique("stranger")
    await stack.add_tenant(owner)
    await stack.add_tenant(stranger)
    await stack.add_model(owner, "topic")
    stub, theirs = ModelServiceStub(stack.channel), stack.metadata(stranger)
    for call in (
        stub.GetModel(model_pb2.GetModelRequest(model="topic"), metadata=theirs),
        stub.ListVersions(model_pb2.ListVersionsRequest(model="topic"), metadata=theirs),
        stub.SetPinned(model_pb2.SetPinnedRequest(model="topic", pinned=True), metadata=theirs),
        stub.DeleteModel(model_pb2.DeleteModelRequest(model="topic"), metadata=theirs),
    ):
        await expect(grpc.StatusCode.NOT_FOUND, call)
    listed = await stub.ListModels(model_pb2.ListModelsRequest(), metadata=theirs)
    assert list(listed.models) == []
