"""hmi.admin.v1.ModelService: bases, uploads, models and versions.

Knows the messages and who may ask; uploads, bases and the knowledge store do the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc.aio

from hmi.admin.v1 import model_pb2 as pb
from hmi.admin.v1 import resources_pb2
from hmi.admin.v1.model_pb2_grpc import ModelServiceServicer
from hmi.knowledge.v1 import knowledge_pb2
from services.common.errors import HmiError, NotFound
from services.gateway.auth import Authenticator
from services.gateway.bases import BaseUploads
from services.gateway.bulk import BulkUpload
from services.gateway.mirror import Mirror
from services.gateway.paging import page
from services.gateway.servicers.parts import Parts
from services.gateway.state import Model
from services.gateway.store_calls import ask
from services.gateway.streams import Pace
from services.gateway.uploads import VersionUploads

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]


class ModelServicer(ModelServiceServicer):
    """Administers bases, models and versions."""

    def __init__(
        self,
        auth: Authenticator,
        stub: KnowledgeServiceAsyncStub,
        mirror: Mirror,
        bases: BaseUploads,
        uploads: VersionUploads,
        pace: Pace,
    ) -> None:
        self._auth = auth
        self._stub = stub
        self._mirror = mirror
        self._bases = bases
        self._uploads = uploads
        self._pace = pace

    async def AddBase(
        self, request_iterator: AsyncIterator[pb.AddBaseRequest], context: Context
    ) -> pb.AddBaseResponse:
        self._auth.admin(context.invocation_metadata())
        parts = Parts(aiter(request_iterator), self._pace)
        header = await parts.header()
        chunks = parts.chunks(f"base '{header.name}'")
        return pb.AddBaseResponse(base=await self._bases.add(header, chunks))

    async def ListBases(
        self, request: pb.ListBasesRequest, context: Context
    ) -> pb.ListBasesResponse:
        self._auth.caller(context.invocation_metadata())
        bases = self._mirror.state.bases
        return pb.ListBasesResponse(bases=[bases[name].pb for name in sorted(bases)])

    async def GetBase(self, request: pb.GetBaseRequest, context: Context) -> pb.GetBaseResponse:
        self._auth.caller(context.invocation_metadata())
        base = self._mirror.state.bases.get(request.name)
        if base is None:
            raise NotFound(f"there is no base '{request.name}'", reason="BASE_NOT_FOUND")
        return pb.GetBaseResponse(base=base.pb)

    async def DeleteBase(
        self, request: pb.DeleteBaseRequest, context: Context
    ) -> pb.DeleteBaseResponse:
        self._auth.admin(context.invocation_metadata())
        await ask(self._stub.DeleteBase(knowledge_pb2.DeleteBaseRequest(name=request.name)))
        await self._mirror.until(lambda: request.name not in self._mirror.state.bases)
        return pb.DeleteBaseResponse()

    async def GetUpload(
        self, request: pb.GetUploadRequest, context: Context
    ) -> pb.GetUploadResponse:
        caller = self._auth.caller(context.invocation_metadata())
        held = await self._uploads.arrivals.held_bytes(caller.tenant, request.sha256)
        return pb.GetUploadResponse(committed_bytes=held)

    async def UploadVersion(
        self, request_iterator: AsyncIterator[pb.UploadVersionRequest], context: Context
    ) -> pb.UploadVersionResponse:
        caller = self._auth.tenant_caller(context.invocation_metadata())
        parts = Parts(aiter(request_iterator), self._pace)
        header = await parts.header()
        check_caller = partial(self._auth.check_still_valid, caller)
        check_caller()
        chunks = parts.chunks(f"model '{header.model}', {header.sha256}")
        version = await self._uploads.upload(caller.tenant, header, chunks, check_caller)
        return pb.UploadVersionResponse(version=version)

    async def UploadVersions(
        self, request_iterator: AsyncIterator[pb.UploadVersionsRequest], context: Context
    ) -> AsyncIterator[pb.UploadVersionsResponse]:
        caller = self._auth.tenant_caller(context.invocation_metadata())
        check_caller = partial(self._auth.check_still_valid, caller)
        bulk = BulkUpload(self._uploads, caller.tenant, check_caller, self._pace)
        async with aclosing(bulk.run(aiter(request_iterator))) as outcomes:
            async for position, outcome in outcomes:
                if isinstance(outcome, HmiError):
                    error = outcome.to_status()
                    yield pb.UploadVersionsResponse(position=position, error=error)
                else:
                    yield pb.UploadVersionsResponse(position=position, version=outcome)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        tenant = self._tenant(context)
        models = {
            name: model.pb
            for name, model in self._mirror.state.models.get(tenant, {}).items()
            if model.pb is not None
        }
        names, token = page(models, request.page_size, request.page_token)
        return pb.ListModelsResponse(models=[models[n] for n in names], next_page_token=token)

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=self._model(context, request.model).pb)

    async def ListVersions(
        self, request: pb.ListVersionsRequest, context: Context
    ) -> pb.ListVersionsResponse:
        versions = self._model(context, request.model).versions
        return pb.ListVersionsResponse(versions=[versions[n].pb for n in sorted(versions)])

    async def SetTraffic(
        self, request: pb.SetTrafficRequest, context: Context
    ) -> pb.SetTrafficResponse:
        tenant = self._tenant(context)
        change = knowledge_pb2.SetTrafficRequest(
            tenant=tenant, model=request.model, traffic=request.traffic
        )
        answer = await ask(self._stub.SetTraffic(change))
        return pb.SetTrafficResponse(model=await self._seen(answer.model))

    async def RollBack(self, request: pb.RollBackRequest, context: Context) -> pb.RollBackResponse:
        change = knowledge_pb2.RollBackRequest(tenant=self._tenant(context), model=request.model)
        answer = await ask(self._stub.RollBack(change))
        return pb.RollBackResponse(model=await self._seen(answer.model))

    async def SetPinned(
        self, request: pb.SetPinnedRequest, context: Context
    ) -> pb.SetPinnedResponse:
        change = knowledge_pb2.SetPinnedRequest(
            tenant=self._tenant(context), model=request.model, pinned=request.pinned
        )
        answer = await ask(self._stub.SetPinned(change))
        return pb.SetPinnedResponse(model=await self._seen(answer.model))

    async def DeleteVersion(
        self, request: pb.DeleteVersionRequest, context: Context
    ) -> pb.DeleteVersionResponse:
        tenant = self._tenant(context)
        delete = knowledge_pb2.DeleteVersionRequest(
            tenant=tenant, model=request.model, version=request.version
        )
        await ask(self._stub.DeleteVersion(delete))

        def is_gone() -> bool:
            model = self._mirror.state.models.get(tenant, {}).get(request.model)
            return model is None or request.version not in model.versions

        await self._mirror.until(is_gone)
        return pb.DeleteVersionResponse()

    async def DeleteModel(
        self, request: pb.DeleteModelRequest, context: Context
    ) -> pb.DeleteModelResponse:
        tenant = self._tenant(context)
        delete = knowledge_pb2.DeleteModelRequest(tenant=tenant, model=request.model)
        await ask(self._stub.DeleteModel(delete))
        await self._mirror.until(
            lambda: request.model not in self._mirror.state.models.get(tenant, {})
        )
        return pb.DeleteModelResponse()

    def _tenant(self, context: Context) -> str:
        return self._auth.tenant_caller(context.invocation_metadata()).tenant

    def _model(self, context: Context, name: str) -> Model:
        return self._mirror.model(self._tenant(context), name)

    async def _seen(self, model: resources_pb2.Model) -> resources_pb2.Model:
        """The changed model, once this gateway's own requests follow it."""

        def is_seen() -> bool:
            known = self._mirror.state.models.get(model.tenant, {}).get(model.name)
            return known is not None and known.pb == model

        await self._mirror.until(is_seen)
        return model
