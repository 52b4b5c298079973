"""inference.GRPCInferenceService: the Open Inference Protocol v2.

Knows the messages; the predictor answers, as it does for hmi.inference.v1.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import grpc.aio

from hmi.oip.v1 import open_inference_pb2 as pb
from hmi.oip.v1.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.gateway.auth import Authenticator
from services.gateway.domain import Version
from services.gateway.mirror import Mirror
from services.gateway.oip import inputs, outputs
from services.gateway.predictor import Predictor, Question
from services.gateway.router import Router

Context = grpc.aio.ServicerContext[Any, Any]
_TensorMetadata = pb.ModelMetadataResponse.TensorMetadata


class OpenInferenceServicer(GRPCInferenceServiceServicer):
    """Answers clients of Triton and KServe."""

    def __init__(
        self, auth: Authenticator, mirror: Mirror, router: Router, predictor: Predictor
    ) -> None:
        self._auth = auth
        self._mirror = mirror
        self._router = router
        self._predictor = predictor

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Context
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Context
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._auth.is_ready and self._router.has_executor)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Context
    ) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(
            name="hmi", version=_release(), extensions=["model_repository"]
        )

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Context
    ) -> pb.ModelReadyResponse:
        tenant = self._tenant(context)
        number = inputs.version_number("version", request.version)
        try:
            version = self._mirror.version(tenant, request.name, number)
        except (NotFound, FailedPrecondition):
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=self._router.is_served(version.base_digest))

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Context
    ) -> pb.ModelMetadataResponse:
        tenant = self._tenant(context)
        number = inputs.version_number("version", request.version)
        model = self._mirror.model(tenant, request.name)
        version = self._mirror.version(tenant, request.name, number or model.most_traffic())
        base = self._mirror.base_of(version)
        return pb.ModelMetadataResponse(
            name=request.name,
            versions=[str(n) for n in sorted(model.versions)],
            platform=f"hmi_{base.pb.architecture}",
            inputs=[_TensorMetadata(name="text", datatype="BYTES", shape=[-1])],
            outputs=outputs.described(version, base.pb.hidden_size),
        )

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Context
    ) -> pb.ModelInferResponse:
        tenant = self._tenant(context)
        number = inputs.version_number("model_version", request.model_version)
        version = self._mirror.version(tenant, request.model_name, number)
        names = outputs.wanted(request, version)
        question = Question(
            tenant=tenant,
            model=request.model_name,
            version=version.pb.number,
            priority=inputs.priority(request),
            texts=inputs.texts(request),
            timeout_s=context.time_remaining(),
        )
        version, predictions = await self._predictor.answer(question)
        response = _response(request, version, outputs.outputs(names, predictions))
        self._predictor.bill(tenant, predictions)
        return response

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Context
    ) -> pb.RepositoryIndexResponse:
        tenant = self._tenant(context)
        if request.repository_name:
            raise InvalidArgument("repository_name", "must be empty: there is one repository")
        models = self._mirror.state.models.get(tenant, {})
        entries = [
            self._index_entry(models[name].versions[number])
            for name in sorted(models)
            for number in sorted(models[name].versions)
        ]
        chosen = [entry for entry in entries if entry.state == "READY" or not request.ready]
        return pb.RepositoryIndexResponse(models=chosen)

    def _index_entry(self, version: Version) -> pb.RepositoryIndexResponse.ModelIndex:
        is_served = self._router.is_served(version.base_digest)
        return pb.RepositoryIndexResponse.ModelIndex(
            name=version.pb.model,
            version=str(version.pb.number),
            state="READY" if is_served else "UNAVAILABLE",
            reason="" if is_served else "no executor serves its base",
        )

    def _tenant(self, context: Context) -> str:
        return self._auth.tenant_caller(context.invocation_metadata()).tenant


def _release() -> str:
    """The installed release; a checkout that is not installed has none."""
    try:
        return metadata.version("hmi")
    except metadata.PackageNotFoundError:
        return "0"


def _response(
    request: pb.ModelInferRequest, version: Version, tensors: list[outputs.Output]
) -> pb.ModelInferResponse:
    is_raw = inputs.is_raw(request)
    provenance = version.provenance
    parameters = {
        "tenant": provenance.tenant,
        "digest": provenance.digest,
        "base": provenance.base,
        "base_digest": provenance.base_digest,
    }
    if provenance.table_version:
        parameters["table_version"] = provenance.table_version
    return pb.ModelInferResponse(
        model_name=version.pb.model,
        model_version=str(version.pb.number),
        id=request.id,
        parameters={k: pb.InferParameter(string_param=v) for k, v in parameters.items()},
        outputs=[
            pb.ModelInferResponse.InferOutputTensor(
                name=tensor.name,
                datatype=tensor.datatype,
                shape=tensor.shape,
                contents=None if is_raw else tensor.contents(),
            )
            for tensor in tensors
        ],
        raw_output_contents=[tensor.raw() for tensor in tensors] if is_raw else [],
    )
