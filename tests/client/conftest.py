"""Real servers on free ports: one that records any RPC, and room for scripted ones."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Protocol

import grpc
import grpc.aio
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from hmi.admin.v1 import domain_pb2, model_pb2, tenant_pb2
from hmi.client import AsyncClient, RetryPolicy
from hmi.inference.v1 import inference_pb2

PUBLIC_SERVICES: list[ServiceDescriptor] = [
    service
    for module in (inference_pb2, tenant_pb2, model_pb2, domain_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
]

FAST = RetryPolicy(max_attempts=4, initial_s=0.01, max_s=0.2)

Adder = Callable[[grpc.aio.Server], None]


class Serve(Protocol):
    """Starts a server and returns a client of it."""

    def __call__(
        self, add: Adder, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    ) -> Awaitable[AsyncClient]: ...


class Recorder(grpc.GenericRpcHandler):
    """Answers every public RPC with an empty message, and remembers which were called."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.metadata: dict[str, str | bytes] = {}
        self._methods = {
            f"/{service.full_name}/{method.name}": method
            for service in PUBLIC_SERVICES
            for method in service.methods
        }

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = self._methods.get(details.method)
        if method is None:
            return None
        self.metadata = dict(details.invocation_metadata)
        return self._handler(method)

    def _handler(self, method: MethodDescriptor) -> grpc.RpcMethodHandler[Any, Any]:
        request_type = message_factory.GetMessageClass(method.input_type)
        answer = message_factory.GetMessageClass(method.output_type)()
        if isinstance(answer, inference_pb2.PredictResponse):
            answer.predictions.add().regression.values.append(1.0)

        async def unary(request: Any, context: Any) -> Any:
            self.called.append(method.full_name)
            return answer

        async def stream_in(requests: AsyncIterator[Any], context: Any) -> Any:
            self.called.append(method.full_name)
            async for _ in requests:
                pass
            return answer

        async def stream_both(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            self.called.append(method.full_name)
            position = 0
            async for request in requests:
                if isinstance(request, inference_pb2.StreamPredictRequest):
                    response = inference_pb2.StreamPredictResponse(item_id=request.item_id)
                    response.prediction.regression.values.append(1.0)
                    yield response
                elif request.HasField("header"):
                    response = model_pb2.UploadVersionsResponse(position=position)
                    response.version.number = position + 1
                    position += 1
                    yield response

        codec = {
            "request_deserializer": request_type.FromString,
            "response_serializer": lambda message: message.SerializeToString(),
        }
        if method.client_streaming and method.server_streaming:
            return grpc.stream_stream_rpc_method_handler(stream_both, **codec)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(stream_in, **codec)
        return grpc.unary_unary_rpc_method_handler(unary, **codec)


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server with the given servicers and returns a client of it."""
    servers: list[grpc.aio.Server] = []
    clients: list[AsyncClient] = []

    async def start(
        add: Adder, interceptors: Sequence[grpc.aio.ServerInterceptor] = ()
    ) -> AsyncClient:
        server = grpc.aio.server(interceptors=list(interceptors))
        add(server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        client = AsyncClient(f"127.0.0.1:{port}", key="secret", tenant="acme", retry=FAST)
        servers.append(server)
        clients.append(client)
        return client

    yield start
    for client in clients:
        await client.close()
    for server in servers:
        await server.stop(None)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def recorded(serve: Serve, recorder: Recorder) -> AsyncClient:
    """A client of the recorder."""
    return await serve(lambda server: server.add_generic_rpc_handlers((recorder,)))
