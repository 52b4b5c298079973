"""`python -m services.gateway` as the stack runs it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hmi.knowledge.v1 import knowledge_pb2
from tests.gateway.conftest import TOKEN, Stack


async def test_the_process_serves_registers_and_leaves_cleanly(
    stack: Stack, tmp_path: Path
) -> None:
    settings = {
        "HMI_KNOWLEDGE_ADDRESS": stack.store.address,
        "HMI_CACHE_DIR": str(tmp_path),
        "HMI_SERVICE_TOKEN": TOKEN,
        "HMI_PARENT_PID": str(os.getpid()),
        "HMI_METRICS_PORT": "0",
        "HMI_DRAIN_S": "0.1",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.gateway", env=os.environ | settings,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    address = line.removeprefix("ready: ").strip()
    async with grpc.aio.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("hmi.inference.v1.InferenceService", "inference.GRPCInferenceService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    def is_registered() -> bool:
        kind = knowledge_pb2.MEMBER_KIND_GATEWAY
        members = stack.app.mirror.state.members.values()
        return any(m.kind == kind and m.address == address for m in members)

    assert await stack.app.mirror.until(is_registered, timeout_s=5)
    process.terminate()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    assert await stack.app.mirror.until(lambda: not is_registered(), timeout_s=5)
