"""KnowledgeService: parse, call, reply.

Knows the protos; what happens is in `metadata/`, `domains/`, `blobs`, `leases` and `watch`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from typing import Any

import grpc.aio

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.admin.v1.domain_pb2 import DomainChange
from hmi.knowledge.v1 import domain_pb2 as dpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceServicer
from services.common.errors import HmiError, InvalidArgument
from services.knowledge_store.blobs import BlobDirectory
from services.knowledge_store.domains.forest import Forest
from services.knowledge_store.leases import Leases
from services.knowledge_store.metadata.bases import Bases
from services.knowledge_store.metadata.models import Models
from services.knowledge_store.metadata.tenants import Tenants
from services.knowledge_store.metadata.versions import Versions
from services.knowledge_store.quotas import Quotas
from services.knowledge_store.watch import Watches

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Parts:
    """What the servicer calls."""

    tenants: Tenants
    bases: Bases
    versions: Versions
    models: Models
    blobs: BlobDirectory
    leases: Leases
    quotas: Quotas
    watches: Watches
    forest: Forest
    lease_ms: int


class KnowledgeServicer(KnowledgeServiceServicer):
    """Answers `hmi.knowledge.v1.KnowledgeService`; each RPC's errors are in its proto."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def PutTenant(self, request: pb.PutTenantRequest, context: Context) -> Any:
        tenants = self._parts.tenants
        if not request.is_create:
            return pb.PutTenantResponse(tenant=await tenants.update(request.tenant))
        first_key = request.first_key if request.HasField("first_key") else None
        tenant, is_repeat = await tenants.create(request.tenant, first_key, request.request_id)
        return pb.PutTenantResponse(tenant=tenant, is_repeat=is_repeat)

    async def DeleteTenant(self, request: pb.DeleteTenantRequest, context: Context) -> Any:
        await self._parts.tenants.delete(request.tenant)
        return pb.DeleteTenantResponse()

    async def PutKey(self, request: pb.PutKeyRequest, context: Context) -> Any:
        tenants = self._parts.tenants
        if request.revoke:
            api_key = await tenants.revoke_key(request.key.api_key.key_id)
        else:
            api_key = await tenants.add_key(request.key)
        return pb.PutKeyResponse(api_key=api_key)

    async def PutBase(self, request: pb.PutBaseRequest, context: Context) -> Any:
        return pb.PutBaseResponse(base=await self._parts.bases.put(request.base))

    async def DeleteBase(self, request: pb.DeleteBaseRequest, context: Context) -> Any:
        await self._parts.bases.delete(request.name)
        return pb.DeleteBaseResponse()

    async def CreateVersions(self, request: pb.CreateVersionsRequest, context: Context) -> Any:
        outcomes = await self._parts.versions.create(request.versions)
        return pb.CreateVersionsResponse(versions=[_created(outcome) for outcome in outcomes])

    async def SetTraffic(self, request: pb.SetTrafficRequest, context: Context) -> Any:
        model = await self._parts.models.set_traffic(request.tenant, request.model, request.traffic)
        return pb.SetTrafficResponse(model=model)

    async def RollBack(self, request: pb.RollBackRequest, context: Context) -> Any:
        model = await self._parts.models.roll_back(request.tenant, request.model)
        return pb.RollBackResponse(model=model)

    async def SetPinned(self, request: pb.SetPinnedRequest, context: Context) -> Any:
        model = await self._parts.models.set_pinned(
            request.tenant, request.model, is_pinned=request.pinned
        )
        return pb.SetPinnedResponse(model=model)

    async def DeleteVersion(self, request: pb.DeleteVersionRequest, context: Context) -> Any:
        await self._parts.models.delete_version(request.tenant, request.model, request.version)
        return pb.DeleteVersionResponse()

    async def DeleteModel(self, request: pb.DeleteModelRequest, context: Context) -> Any:
        await self._parts.models.delete(request.tenant, request.model)
        return pb.DeleteModelResponse()

    async def StatBlob(self, request: pb.StatBlobRequest, context: Context) -> Any:
        state = await self._parts.blobs.stat(request.sha256, request.owner)
        return pb.StatBlobResponse(committed_bytes=state.held_bytes, is_complete=state.is_complete)

    async def WriteBlob(
        self, request_iterator: AsyncIterator[pb.WriteBlobRequest], context: Context
    ) -> Any:
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None:
            raise InvalidArgument("sha256", "the stream is empty")
        held_bytes = await self._parts.blobs.write(
            first.sha256, first.size_bytes, first.offset, _data(first, requests), owner=first.owner
        )
        return pb.WriteBlobResponse(committed_bytes=held_bytes)

    async def ReadBlob(
        self, request: pb.ReadBlobRequest, context: Context
    ) -> AsyncIterator[pb.ReadBlobResponse]:
        async for size_bytes, data in self._parts.blobs.read(request.sha256, request.offset):
            yield pb.ReadBlobResponse(size_bytes=size_bytes, data=data)

    async def CreateDomain(self, request: dpb.CreateDomainRequest, context: Context) -> Any:
        domain = await self._parts.forest.nodes.create(
            request.domain, request.counts_sha256, request.request_id
        )
        return dpb.CreateDomainResponse(domain=domain)

    async def SetDomain(self, request: dpb.SetDomainRequest, context: Context) -> Any:
        return dpb.SetDomainResponse(domain=await self._parts.forest.nodes.set(request))

    async def DeleteDomain(self, request: dpb.DeleteDomainRequest, context: Context) -> Any:
        await self._parts.forest.nodes.delete(request.base, request.path)
        return dpb.DeleteDomainResponse()

    async def UpdateDomains(self, request: dpb.UpdateDomainsRequest, context: Context) -> Any:
        update_id, changes = await self._parts.forest.updates.update(
            request.base, request.path, is_dry_run=request.is_dry_run
        )
        return dpb.UpdateDomainsResponse(
            update_id=update_id, changes=[DomainChange(**asdict(change)) for change in changes]
        )

    async def RollBackDomain(self, request: dpb.RollBackDomainRequest, context: Context) -> Any:
        domain = await self._parts.forest.nodes.roll_back(request.base, request.path)
        return dpb.RollBackDomainResponse(domain=domain)

    async def GetDomainStats(self, request: dpb.GetDomainStatsRequest, context: Context) -> Any:
        return dpb.GetDomainStatsResponse(
            nodes=await self._parts.forest.statistics.of(request.base)
        )

    async def Observe(self, request: dpb.ObserveRequest, context: Context) -> Any:
        await self._parts.forest.observing.observe(request)
        return dpb.ObserveResponse()

    async def LeaseWork(self, request: dpb.LeaseWorkRequest, context: Context) -> Any:
        work = await self._parts.forest.work.lease(
            request.executor_id, request.base_digests, request.work_id
        )
        return dpb.LeaseWorkResponse(work=work)

    async def CompleteWork(self, request: dpb.CompleteWorkRequest, context: Context) -> Any:
        is_committed = await self._parts.forest.work.complete(
            request.work_id, request.lease_token, request.expected_version, request.segments
        )
        return dpb.CompleteWorkResponse(is_committed=is_committed)

    async def Register(self, request: pb.RegisterRequest, context: Context) -> Any:
        await self._parts.leases.register(request.member)
        return pb.RegisterResponse(lease_ms=self._parts.lease_ms)

    async def RenewLease(self, request: pb.RenewLeaseRequest, context: Context) -> Any:
        self._parts.leases.renew(request.member_id, request.held_blobs)
        return pb.RenewLeaseResponse(lease_ms=self._parts.lease_ms)

    async def Unregister(self, request: pb.UnregisterRequest, context: Context) -> Any:
        await self._parts.leases.unregister(request.member_id)
        return pb.UnregisterResponse()

    async def LeaseQuota(self, request: pb.LeaseQuotaRequest, context: Context) -> Any:
        return pb.LeaseQuotaResponse(grants=self._parts.quotas.lease(request.demands))

    async def Watch(
        self, request: pb.WatchRequest, context: Context
    ) -> AsyncIterator[pb.WatchResponse]:
        async for response in self._parts.watches.watch(request.from_revision):
            yield response


def _created(outcome: rpb.Version | HmiError) -> pb.CreatedVersion:
    if isinstance(outcome, HmiError):
        return pb.CreatedVersion(error_code=outcome.code.value[0], error_message=outcome.message)
    return pb.CreatedVersion(version=outcome)


async def _data(
    first: pb.WriteBlobRequest, rest: AsyncIterator[pb.WriteBlobRequest]
) -> AsyncIterator[bytes]:
    yield first.data
    async for request in rest:
        yield request.data
