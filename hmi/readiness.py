"""Waits until a local stack can answer: an executor serves the base, and the gateway says so.

Knows the store's `Watch` and gRPC's health; does not know processes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from hmi.knowledge.v1 import knowledge_pb2
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from hmi.supervisor import StackError

INFERENCE_SERVICE = "hmi.inference.v1.InferenceService"


@dataclass(frozen=True, slots=True)
class Readiness:
    """What is waited for shares one deadline."""

    deadline: float
    """Of `time.monotonic`."""
    check: Callable[[], None]
    """Called now and then; raises if waiting is in vain."""

    def for_executor(self, knowledge_address: str, token: str, base_digest: str) -> None:
        """Wait until an executor that serves this base has registered with the store.

        Raises:
            StackError: The time is over.
        """
        metadata = (("authorization", f"Bearer {token}"),)
        with grpc.insecure_channel(knowledge_address) as channel:
            stub = KnowledgeServiceStub(channel)
            while time.monotonic() < self.deadline:
                self.check()
                watch = stub.Watch(knowledge_pb2.WatchRequest(), timeout=2.0, metadata=metadata)
                try:
                    if any(_serves(response, base_digest) for response in watch):
                        watch.cancel()
                        return
                except grpc.RpcError as error:
                    if error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
                        time.sleep(0.1)
        raise StackError("no executor serves the base; see logs/executor.log")

    def for_gateway(self, address: str) -> None:
        """Wait until the gateway's health says SERVING.

        Raises:
            StackError: The time is over.
        """
        request = health_pb2.HealthCheckRequest(service=INFERENCE_SERVICE)
        with grpc.insecure_channel(address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < self.deadline:
                self.check()
                if _is_serving(stub, request):
                    return
                time.sleep(0.05)
        raise StackError("the gateway is not serving; see logs/gateway.log")


def _is_serving(stub: health_pb2_grpc.HealthStub, request: health_pb2.HealthCheckRequest) -> bool:
    try:
        status = stub.Check(request, timeout=1.0).status
    except grpc.RpcError:
        return False  # not listening yet
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


def _serves(response: knowledge_pb2.WatchResponse, digest: str) -> bool:
    return any(
        change.HasField("member")
        and not change.is_deleted
        and change.member.kind == knowledge_pb2.MEMBER_KIND_EXECUTOR
        and digest in change.member.base_digests
        for change in response.changes
    )
