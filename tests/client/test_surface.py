"""Every public RPC has a method in both clients, and the method reaches it."""

from __future__ import annotations

import asyncio
import inspect
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import hmi
from hmi.bases import REQUIRED
from hmi.client import AsyncClient, Client, Item, Push, Quota, RetryPolicy
from hmi.errors import InvalidArgument, Unavailable
from tests.client.conftest import PUBLIC_SERVICES, Recorder


async def _stream(client: AsyncClient) -> None:
    async for _ in client.stream([Item("m", "text")]):
        pass


CALLS: dict[str, Callable[[AsyncClient, Path], Awaitable[Any]]] = {
    "hmi.inference.v1.InferenceService.Predict": lambda c, d: c.predict("m", "text"),
    "hmi.inference.v1.InferenceService.StreamPredict": lambda c, d: _stream(c),
    "hmi.admin.v1.TenantService.CreateTenant": lambda c, d: c.create_tenant("acme"),
    "hmi.admin.v1.TenantService.GetTenant": lambda c, d: c.get_tenant("acme"),
    "hmi.admin.v1.TenantService.ListTenants": lambda c, d: c.list_tenants(),
    "hmi.admin.v1.TenantService.UpdateTenant": lambda c, d: c.update_tenant(
        "acme", weight=2.0, quota=Quota()
    ),
    "hmi.admin.v1.TenantService.DeleteTenant": lambda c, d: c.delete_tenant("acme"),
    "hmi.admin.v1.TenantService.CreateApiKey": lambda c, d: c.create_api_key("acme"),
    "hmi.admin.v1.TenantService.ListApiKeys": lambda c, d: c.list_api_keys("acme"),
    "hmi.admin.v1.TenantService.RevokeApiKey": lambda c, d: c.revoke_api_key("id"),
    "hmi.admin.v1.TenantService.GetUsage": lambda c, d: c.get_usage("acme"),
    "hmi.admin.v1.ModelService.AddBase": lambda c, d: c.add_base("minilm", d),
    "hmi.admin.v1.ModelService.ListBases": lambda c, d: c.list_bases(),
    "hmi.admin.v1.ModelService.GetBase": lambda c, d: c.get_base("minilm"),
    "hmi.admin.v1.ModelService.DeleteBase": lambda c, d: c.delete_base("minilm"),
    "hmi.admin.v1.ModelService.GetUpload": lambda c, d: c.get_upload("00"),
    "hmi.admin.v1.ModelService.UploadVersion": lambda c, d: c.push_version("m", b"blob"),
    "hmi.admin.v1.ModelService.UploadVersions": lambda c, d: c.push_versions([Push("m", b"b")]),
    "hmi.admin.v1.ModelService.ListModels": lambda c, d: c.list_models(),
    "hmi.admin.v1.ModelService.GetModel": lambda c, d: c.get_model("m"),
    "hmi.admin.v1.ModelService.ListVersions": lambda c, d: c.list_versions("m"),
    "hmi.admin.v1.ModelService.SetTraffic": lambda c, d: c.set_traffic("m", {1: 100}),
    "hmi.admin.v1.ModelService.RollBack": lambda c, d: c.roll_back("m"),
    "hmi.admin.v1.ModelService.SetPinned": lambda c, d: c.set_pinned("m"),
    "hmi.admin.v1.ModelService.DeleteVersion": lambda c, d: c.delete_version("m", 1),
    "hmi.admin.v1.ModelService.DeleteModel": lambda c, d: c.delete_model("m"),
    "hmi.admin.v1.DomainService.CreateDomain": lambda c, d: c.create_domain("b", "p", counts=b"c"),
    "hmi.admin.v1.DomainService.GetDomain": lambda c, d: c.get_domain("b", "p"),
    "hmi.admin.v1.DomainService.ListDomains": lambda c, d: c.list_domains("b"),
    "hmi.admin.v1.DomainService.SetDomain": lambda c, d: c.set_domain("b", "p", alpha=0.4),
    "hmi.admin.v1.DomainService.DeleteDomain": lambda c, d: c.delete_domain("b", "p"),
    "hmi.admin.v1.DomainService.UpdateDomains": lambda c, d: c.update_domains("b"),
    "hmi.admin.v1.DomainService.RollBackDomain": lambda c, d: c.roll_back_domain("b", "p"),
}


def test_every_public_rpc_is_listed() -> None:
    rpcs = {method.full_name for service in PUBLIC_SERVICES for method in service.methods}
    assert set(CALLS) == rpcs


@pytest.mark.parametrize("rpc", CALLS)
async def test_method_reaches_its_rpc(
    rpc: str, recorded: AsyncClient, recorder: Recorder, tmp_path: Path
) -> None:
    for name in REQUIRED:
        (tmp_path / name).write_bytes(b"{}")
    await CALLS[rpc](recorded, tmp_path)
    assert recorder.called[-1] == rpc
    assert recorder.metadata["authorization"] == "Bearer secret"
    assert recorder.metadata["x-hmi-tenant"] == "acme"
    assert recorder.metadata["x-request-id"]


def _surface(cls: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


def test_version_is_the_packages() -> None:
    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == hmi.__version__


def test_both_clients_have_the_same_methods() -> None:
    of_async, of_sync = _surface(AsyncClient), _surface(Client)
    assert set(of_async) == set(of_sync)
    for name in set(of_async) - {"for_tenant", "stream"}:
        assert of_async[name].parameters == of_sync[name].parameters, name


def _use_blocking(address: str) -> tuple[float, list[int]]:
    with Client(address, key="secret") as client:
        answers = list(client.stream((Item("m", str(n)) for n in range(20)), max_in_flight=4))
        prediction: Any = client.for_tenant("other").predict("m", "text")[0]
        return prediction.values[0], sorted(answer.index for answer in answers)


async def test_blocking_client_predicts_and_streams(recorder: Recorder) -> None:
    import grpc.aio

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((recorder,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    value, indices = await asyncio.to_thread(_use_blocking, f"127.0.0.1:{port}")
    await server.stop(None)
    assert value == 1.0
    assert indices == list(range(20))
    assert recorder.metadata["x-hmi-tenant"] == "other"


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c: c.predict("m", "text", version=-1), "version"),
        (lambda c: c.predict("m", "text", priority=2**31), "priority"),
        (lambda c: c.predict("m", "half of a pair: \ud800"), "text"),
        (lambda c: c.set_traffic("m", {1: 2**32}), "percent"),
        (lambda c: c.delete_version("m", -1), "version"),
        (lambda c: c.create_tenant("acme", quota=Quota(max_models=-1)), "max_models"),
    ],
)
async def test_a_value_its_field_cannot_hold_is_named(
    recorded: AsyncClient, call: Callable[[AsyncClient], Awaitable[Any]], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await call(recorded)
    assert caught.value.field == field


async def test_a_gateway_that_is_not_there_is_named() -> None:
    async with AsyncClient("127.0.0.1:1", retry=RetryPolicy(max_attempts=1)) as client:
        with pytest.raises(Unavailable, match=r"no gateway answers at 127\.0\.0\.1:1"):
            await client.list_bases()
