"""A gRPC server's life: bind, say it is healthy, drain, stop.

Knows health, reflection and signals; does not know any service.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from services.common import metrics
from services.common.config import ServiceSettings

MAX_MESSAGE_BYTES = 64 << 20

# What a liveness probe asks for: SERVING as long as the process answers, ready or not.
LIVE = "live"

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
_SERVER_OPTIONS = [
    *CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


class RunningServer:
    """A bound server: its port, and its word on whether it serves."""

    def __init__(self, port: int, health: health_aio.HealthServicer, names: Sequence[str]) -> None:
        self.port = port
        self._health = health
        self._names = ["", *names]

    async def set_serving(self, is_serving: bool) -> None:
        """Answer health checks of every service, and of the server as a whole, so."""
        status = health_pb2.HealthCheckResponse.ServingStatus
        value = status.SERVING if is_serving else status.NOT_SERVING
        for name in self._names:
            await self._health.set(name, value)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@asynccontextmanager
async def serve(
    settings: ServiceSettings,
    *,
    adders: Mapping[str, Callable[[grpc.aio.Server], None]],
    interceptors: Sequence[grpc.aio.ServerInterceptor],
) -> AsyncIterator[RunningServer]:
    """Serve until the block is left; then say NOT_SERVING, let calls finish, stop.

    Args:
        settings: Host, port and how long to drain.
        adders: Full service name to what adds its servicer to a server.
        interceptors: Outermost first.

    Raises:
        OSError: The port is taken, or plaintext is not allowed on this interface.
    """
    if not _is_loopback(settings.host) and not settings.allow_remote_plaintext:
        raise OSError(
            f"refusing to serve without TLS on {settings.host}: if the network is trusted, set "
            "HMI_ALLOW_REMOTE_PLAINTEXT=true"
        )
    server = grpc.aio.server(interceptors=list(interceptors), options=_SERVER_OPTIONS)
    for add in adders.values():
        add(server)
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = list(adders)
    reflection.enable_server_reflection(
        [*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
         reflection.SERVICE_NAME], server)  # fmt: skip
    try:
        port = server.add_insecure_port(f"{settings.host}:{settings.port}")
    except RuntimeError as error:
        raise OSError(f"cannot serve on {settings.host}:{settings.port}: {error}") from error
    await server.start()
    if settings.metrics_port is not None:
        metrics.serve_metrics(settings.metrics_port, settings.host)
    running = RunningServer(port, health, names)
    await health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
    await running.set_serving(True)
    try:
        yield running
    finally:
        await running.set_serving(False)
        await server.stop(settings.drain_s)


async def stopped(settings: ServiceSettings) -> None:
    """Return on SIGTERM or SIGINT, or when the parent process is gone."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    while not stop.is_set():
        if settings.parent_pid is not None and os.getppid() != settings.parent_pid:
            return
        try:
            async with asyncio.timeout(1.0):
                await stop.wait()
        except TimeoutError:
            continue


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service's main coroutine on uvloop."""
    uvloop.run(main)
