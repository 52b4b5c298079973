"""The containers' health check, against a real server."""

from __future__ import annotations

import asyncio

import grpc.aio
import pytest

from services.common import health
from services.common.config import ServiceSettings
from services.common.server import serve


async def test_follows_what_the_server_says_of_itself(capsys: pytest.CaptureFixture[str]) -> None:
    async with serve(ServiceSettings(), adders={}, interceptors=[]) as running:
        address = f"127.0.0.1:{running.port}"
        assert await asyncio.to_thread(health.main, [address]) == 0
        await running.set_serving(False)
        assert await asyncio.to_thread(health.main, [address]) == 1
    assert address in capsys.readouterr().err


async def test_service_the_server_does_not_have_is_not_serving() -> None:
    async with serve(ServiceSettings(), adders={}, interceptors=[]) as running:
        address = f"127.0.0.1:{running.port}"
        assert not await asyncio.to_thread(health.is_serving, address, service="hmi.none.v1.None")


async def test_silent_port_is_not_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.stop(None)
    monkeypatch.setenv("HMI_PORT", str(port))
    assert await asyncio.to_thread(health.main, []) == 1
