"""The client's calls about models and bases that carry no files.

Knows `hmi.admin.v1.ModelService`; does not know how calls are retried.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from hmi.admin.v1 import model_pb2, resources_pb2
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from hmi.client.messages import build
from hmi.client.resources import Base, Model, Version
from hmi.client.transport import Repeat, Transport

if TYPE_CHECKING:
    from hmi.admin.v1.model_pb2_grpc import ModelServiceAsyncStub

PAGE_SIZE = 1_000


class ModelCalls:
    """A tenant's models, and the bases they share. An admin names the tenant with `for_tenant`."""

    _transport: Transport

    @property
    def _models(self) -> ModelServiceAsyncStub:
        return ModelServiceStub(self._transport.channel)

    async def list_bases(self, *, timeout: float | None = None) -> list[Base]:
        """Every base, in the order of their names."""
        request = model_pb2.ListBasesRequest()
        response = await self._transport.unary(self._models.ListBases, request, timeout=timeout)
        return [Base.from_pb(one) for one in response.bases]

    async def get_base(self, name: str, *, timeout: float | None = None) -> Base:
        """One base.

        Raises:
            NotFound: There is none.
        """
        request = model_pb2.GetBaseRequest(name=name)
        response = await self._transport.unary(self._models.GetBase, request, timeout=timeout)
        return Base.from_pb(response.base)

    async def delete_base(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a base that no version uses (admin).

        Raises:
            NotFound: There is none.
            FailedPrecondition: Versions use it.
        """
        request = model_pb2.DeleteBaseRequest(name=name)
        await self._transport.delete(self._models.DeleteBase, request, timeout=timeout)

    async def list_models(self, *, timeout: float | None = None) -> list[Model]:
        """Every model of the tenant, in the order of their names."""
        models: list[Model] = []
        token = ""
        while True:
            request = model_pb2.ListModelsRequest(page_size=PAGE_SIZE, page_token=token)
            page = await self._transport.unary(self._models.ListModels, request, timeout=timeout)
            models += [Model.from_pb(one) for one in page.models]
            token = page.next_page_token
            if not token:
                return models

    async def get_model(self, model: str, *, timeout: float | None = None) -> Model:
        """One model.

        Raises:
            NotFound: The tenant has none of that name.
        """
        request = model_pb2.GetModelRequest(model=model)
        response = await self._transport.unary(self._models.GetModel, request, timeout=timeout)
        return Model.from_pb(response.model)

    async def list_versions(self, model: str, *, timeout: float | None = None) -> list[Version]:
        """A model's versions, oldest first.

        Raises:
            NotFound: The tenant has no such model.
        """
        request = model_pb2.ListVersionsRequest(model=model)
        response = await self._transport.unary(self._models.ListVersions, request, timeout=timeout)
        return [Version.from_pb(one) for one in response.versions]

    async def activate(self, model: str, version: int, *, timeout: float | None = None) -> Model:
        """Send all of a model's requests to one version. Raises what `set_traffic` raises."""
        return await self.set_traffic(model, {version: 100}, timeout=timeout)

    async def set_traffic(
        self, model: str, traffic: Mapping[int, int], *, timeout: float | None = None
    ) -> Model:
        """Split a model's requests over versions.

        Not retried: done twice, it would make `roll_back` return to this very split.

        Args:
            model: The model's name.
            traffic: Version number to percent; percents add up to 100.

        Raises:
            InvalidArgument: The percents do not add up.
            NotFound: The tenant has no such model or version.
        """
        request = model_pb2.SetTrafficRequest(
            model=model,
            traffic=[
                build(resources_pb2.TrafficTarget, version=version, percent=percent)
                for version, percent in traffic.items()
            ],
        )
        response = await self._transport.unary(
            self._models.SetTraffic, request, timeout=timeout, repeat=Repeat.UNSAFE
        )
        return Model.from_pb(response.model)

    async def roll_back(self, model: str, *, timeout: float | None = None) -> Model:
        """Return to the traffic before the last change. Not retried: twice would be undone.

        Raises:
            NotFound: The tenant has no such model.
            FailedPrecondition: There is no traffic to return to, or its version was deleted.
        """
        request = model_pb2.RollBackRequest(model=model)
        response = await self._transport.unary(
            self._models.RollBack, request, timeout=timeout, repeat=Repeat.UNSAFE
        )
        return Model.from_pb(response.model)

    async def set_pinned(
        self, model: str, pinned: bool = True, *, timeout: float | None = None
    ) -> Model:
        """Keep a model resident in device memory, or no longer.

        Raises:
            NotFound: The tenant has no such model.
        """
        request = model_pb2.SetPinnedRequest(model=model, pinned=pinned)
        response = await self._transport.unary(self._models.SetPinned, request, timeout=timeout)
        return Model.from_pb(response.model)

    async def delete_version(
        self, model: str, version: int, *, timeout: float | None = None
    ) -> None:
        """Delete a version that gets no traffic.

        Raises:
            NotFound: The tenant has no such model or version.
            FailedPrecondition: It gets traffic.
        """
        request = build(model_pb2.DeleteVersionRequest, model=model, version=version)
        await self._transport.delete(self._models.DeleteVersion, request, timeout=timeout)

    async def delete_model(self, model: str, *, timeout: float | None = None) -> None:
        """Delete a model and its versions; its version numbers are not used again.

        Raises:
            NotFound: The tenant has no such model.
        """
        request = model_pb2.DeleteModelRequest(model=model)
        await self._transport.delete(self._models.DeleteModel, request, timeout=timeout)

    async def get_upload(self, sha256: str, *, timeout: float | None = None) -> int:
        """Bytes the store holds of a blob: where an upload of it can go on."""
        request = model_pb2.GetUploadRequest(sha256=sha256)
        response = await self._transport.unary(self._models.GetUpload, request, timeout=timeout)
        return response.committed_bytes
