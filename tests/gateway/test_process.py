"""`python -m services.gateway` as the stack runs it."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import urllib.request
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from hmi.admin.v1 import tenant_pb2
from hmi.admin.v1.tenant_pb2_grpc import TenantServiceStub
from hmi.knowledge.v1 import knowledge_pb2
from tests.gateway.conftest import ADMIN, TOKEN, Stack, Store

SERVICES = (
    "hmi.admin.v1.ModelService",
    "hmi.admin.v1.TenantService",
    "hmi.inference.v1.InferenceService",
    "inference.GRPCInferenceService",
)


@asynccontextmanager
async def gateway(store: Store, cache: Path, **settings: str) -> AsyncIterator[tuple[Process, str]]:
    """The process and its address; ended, if it still runs, when the block is left."""
    chosen = {
        "HMI_KNOWLEDGE_ADDRESS": store.address,
        "HMI_CACHE_DIR": str(cache),
        "HMI_SERVICE_TOKEN": TOKEN,
        "HMI_PARENT_PID": str(os.getpid()),
        "HMI_METRICS_PORT": "0",
        "HMI_DRAIN_S": "0.1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway", env=os.environ | chosen | settings,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        line = (await process.stdout.readline()).decode()
        yield process, line.removeprefix("ready: ").strip()
    finally:
        if process.returncode is None:
            process.terminate()
            await asyncio.wait_for(process.wait(), 10)


async def is_serving(channel: grpc.aio.Channel, service: str) -> bool:
    """What the health service says of one name."""
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_the_process_serves_registers_and_leaves_cleanly(
    stack: Stack, tmp_path: Path
) -> None:
    async with gateway(stack.store, tmp_path) as (process, address):
        async with grpc.aio.insecure_channel(address) as channel:
            for service in SERVICES:
                assert await is_serving(channel, service)

        def is_registered() -> bool:
            kind = knowledge_pb2.MEMBER_KIND_GATEWAY
            members = stack.app.mirror.state.members.values()
            return any(m.kind == kind and m.address == address for m in members)

        assert await stack.app.mirror.until(is_registered, timeout_s=5)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
    assert await stack.app.mirror.until(lambda: not is_registered(), timeout_s=5)


async def test_a_gateway_whose_keys_are_too_old_is_alive_and_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMI_SIGN_OF_LIFE_S", "0.2")
    store = Store(tmp_path / "store")
    store.start()
    try:
        async with (
            gateway(store, tmp_path / "cache", HMI_MAX_STALENESS_S="1.5") as (_, address),
            grpc.aio.insecure_channel(address) as channel,
        ):
            names = ("", *SERVICES)

            async def become(wanted: bool) -> None:
                async with asyncio.timeout(20):
                    while {await is_serving(channel, n) for n in names} != {wanted}:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)

            await become(True)
            store.stop(at_once=True)
            await become(False)
            assert await is_serving(channel, "live")
            store.start()
            await become(True)
    finally:
        store.stop()


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def scraped(port: str) -> dict[str, Metric]:
    """What Prometheus would read, by name."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:
        text = response.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def kinds(families: dict[str, Metric]) -> dict[str, str]:
    """The kind of every metric of ours, by name (a counter's is without its _total)."""
    return {name: family.type for name, family in families.items() if name.startswith("hmi_")}


async def test_gateway_and_store_tell_their_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, gateways = free_port(), free_port()
    monkeypatch.setenv("HMI_METRICS_PORT", stores)
    store = Store(tmp_path / "store")
    store.start()
    try:
        async with gateway(store, tmp_path / "cache", HMI_METRICS_PORT=gateways) as (_, address):
            async with grpc.aio.insecure_channel(address) as channel:
                admin = (("authorization", f"Bearer {ADMIN}"),)
                stub: Any = TenantServiceStub(channel)
                await stub.ListTenants(tenant_pb2.ListTenantsRequest(), metadata=admin)
            of_gateway = await asyncio.to_thread(scraped, gateways)
            of_store = await asyncio.to_thread(scraped, stores)
    finally:
        store.stop()
    everywhere = {"hmi_requests": "counter", "hmi_request_seconds": "histogram"}
    of_queues = {"hmi_queue_seconds": "histogram", "hmi_queue_items": "gauge"}
    assert kinds(of_gateway).items() >= (everywhere | of_queues).items()
    of_blobs = {"hmi_store_blobs": "gauge", "hmi_store_blobs_collected": "counter"}
    assert kinds(of_store).items() >= (everywhere | of_blobs).items()
    labels = {
        "service": "gateway",
        "method": "/hmi.admin.v1.TenantService/ListTenants",
        "code": "OK",
    }
    [counted] = [s for s in of_gateway["hmi_requests"].samples if s.labels == labels]
    assert (counted.name, counted.value) == ("hmi_requests_total", 1)
    assert [s.value for s in of_store["hmi_store_members"].samples] == [1]
    for family in (*of_gateway.values(), *of_store.values()):
        assert not {"tenant", "model"} & {name for s in family.samples for name in s.labels}
