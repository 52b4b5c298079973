"""RPCs that Triton adds to the Open Inference Protocol, and that are not served: each says so.

Knows their names and what to do instead; does not know their messages.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from google.protobuf.empty_pb2 import Empty

from hmi.oip.v1 import open_inference_pb2 as pb
from services.common.drain import drain

_SERVICE = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]

_MEMORY = "send tensors within the request"
_SETTINGS = "logs and traces are settings of the deployment"
_INSTEAD = {
    "ModelConfig": "ModelMetadata names a model's tensors",
    "ModelStatistics": "the gateway's metrics port and `hmi tenants usage` count requests",
    "ModelStreamInfer": "send ModelInfer, or hmi.inference.v1.InferenceService/StreamPredict",
    "RepositoryModelLoad": "a model is loaded when it is asked; `hmi models pin` keeps it",
    "RepositoryModelUnload": "models make room for each other; `hmi models delete` ends one",
    "SystemSharedMemoryStatus": _MEMORY,
    "SystemSharedMemoryRegister": _MEMORY,
    "SystemSharedMemoryUnregister": _MEMORY,
    "CudaSharedMemoryStatus": _MEMORY,
    "CudaSharedMemoryRegister": _MEMORY,
    "CudaSharedMemoryUnregister": _MEMORY,
    "TraceSetting": _SETTINGS,
    "LogSettings": _SETTINGS,
}


class Extensions(grpc.GenericRpcHandler):
    """Answers Triton's further RPCs UNIMPLEMENTED, with what to do instead.

    gRPC alone would say "Method not found!", which reads like a wrong address. Names outside the
    list are left to it: each name answered here becomes a label of the metrics.
    """

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The refusal of one RPC; None for every other."""
        service, _, name = details.method.lstrip("/").partition("/")
        if service != _SERVICE.full_name or name not in _INSTEAD:
            return None
        message = f"{name} is Triton's own and not served here: {_INSTEAD[name]}"

        async def refuse(
            requests: AsyncIterator[Empty], context: grpc.aio.ServicerContext[Empty, Empty]
        ) -> AsyncIterator[Empty]:
            await drain(requests)
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, message)
            yield Empty()  # never reached; it makes this the generator that a stream needs

        # Empty reads any message, all of whose fields it does not know.
        return grpc.stream_stream_rpc_method_handler(
            refuse, request_deserializer=Empty.FromString, response_serializer=_serialized
        )


def _serialized(message: Empty) -> bytes:
    return message.SerializeToString()
