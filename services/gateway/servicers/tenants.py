"""hmi.admin.v1.TenantService: tenants, keys and usage.

Knows the messages and who may ask; the knowledge store decides the rest. Secrets are made here,
answered once, and only their sha256 goes on.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import TYPE_CHECKING, Any

import grpc.aio

from hmi.admin.v1 import resources_pb2
from hmi.admin.v1 import tenant_pb2 as pb
from hmi.admin.v1.tenant_pb2_grpc import TenantServiceServicer
from hmi.knowledge.v1 import knowledge_pb2
from services.common.errors import InvalidArgument, NotFound
from services.common.ids import check_name
from services.gateway.auth import Authenticator
from services.gateway.mirror import Mirror
from services.gateway.paging import page
from services.gateway.router import Router
from services.gateway.store_calls import ask
from services.gateway.usage import Usage

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]


def new_key(tenant: str, role: resources_pb2.Role.ValueType) -> tuple[knowledge_pb2.Key, str]:
    """A key as the store keeps it, and its secret."""
    key_id = secrets.token_hex(8)
    secret = f"hmi_{key_id}_{secrets.token_urlsafe(32)}"
    api_key = resources_pb2.ApiKey(key_id=key_id, tenant=tenant, role=role)
    digest = hashlib.sha256(secret.encode()).digest()
    return knowledge_pb2.Key(api_key=api_key, secret_sha256=digest), secret


def _checked(given: resources_pb2.Tenant) -> resources_pb2.Tenant:
    """What of a tenant can be chosen, within its bounds."""
    tenant = resources_pb2.Tenant(
        name=given.name,
        weight=given.weight or 1.0,
        quota=given.quota,
        shares_counts=given.shares_counts,
    )
    check_name("tenant.name", tenant.name)
    if not 1e-6 <= tenant.weight <= 1e6:
        raise InvalidArgument("tenant.weight", "must be 0.000001 to 1,000,000; 0 means 1")
    for field in ("requests_per_second", "tokens_per_second"):
        if not 0 <= getattr(tenant.quota, field) <= 1e12:
            raise InvalidArgument(f"tenant.quota.{field}", "must be at least 0 and finite")
    return tenant


class TenantServicer(TenantServiceServicer):
    """Administers tenants."""

    def __init__(
        self,
        auth: Authenticator,
        stub: KnowledgeServiceAsyncStub,
        mirror: Mirror,
        usage: Usage,
        router: Router,
    ) -> None:
        self._auth = auth
        self._stub = stub
        self._mirror = mirror
        self._usage = usage
        self._router = router

    async def CreateTenant(
        self, request: pb.CreateTenantRequest, context: Context
    ) -> pb.CreateTenantResponse:
        self._auth.admin(context.invocation_metadata())
        tenant = _checked(request.tenant)
        key, secret = new_key(tenant.name, resources_pb2.ROLE_TENANT)
        answer = await ask(
            self._stub.PutTenant(
                knowledge_pb2.PutTenantRequest(
                    tenant=tenant, is_create=True, first_key=key, request_id=request.request_id
                )
            )
        )
        if answer.is_repeat:
            return pb.CreateTenantResponse(tenant=answer.tenant)
        key_id = key.api_key.key_id
        await self._mirror.until(lambda: key_id in self._mirror.state.keys)
        kept = self._mirror.state.keys.get(key_id, key)
        return pb.CreateTenantResponse(tenant=answer.tenant, api_key=kept.api_key, secret=secret)

    async def GetTenant(
        self, request: pb.GetTenantRequest, context: Context
    ) -> pb.GetTenantResponse:
        self._own_or_admin(request.tenant, context)
        return pb.GetTenantResponse(tenant=self._tenant(request.tenant))

    async def ListTenants(
        self, request: pb.ListTenantsRequest, context: Context
    ) -> pb.ListTenantsResponse:
        self._auth.admin(context.invocation_metadata())
        tenants = self._mirror.state.tenants
        names, token = page(tenants, request.page_size, request.page_token)
        return pb.ListTenantsResponse(tenants=[tenants[n] for n in names], next_page_token=token)

    async def UpdateTenant(
        self, request: pb.UpdateTenantRequest, context: Context
    ) -> pb.UpdateTenantResponse:
        self._auth.admin(context.invocation_metadata())
        tenant = _checked(request.tenant)
        put = knowledge_pb2.PutTenantRequest(tenant=tenant)
        changed = (await ask(self._stub.PutTenant(put))).tenant
        await self._mirror.until(lambda: self._mirror.state.tenants.get(changed.name) == changed)
        return pb.UpdateTenantResponse(tenant=changed)

    async def DeleteTenant(
        self, request: pb.DeleteTenantRequest, context: Context
    ) -> pb.DeleteTenantResponse:
        self._auth.admin(context.invocation_metadata())
        delete = knowledge_pb2.DeleteTenantRequest(tenant=request.tenant)
        await ask(self._stub.DeleteTenant(delete))
        await self._mirror.until(lambda: request.tenant not in self._mirror.state.tenants)
        return pb.DeleteTenantResponse()

    async def CreateApiKey(
        self, request: pb.CreateApiKeyRequest, context: Context
    ) -> pb.CreateApiKeyResponse:
        self._auth.admin(context.invocation_metadata())
        is_for_tenant = bool(request.tenant)
        wanted = resources_pb2.ROLE_TENANT if is_for_tenant else resources_pb2.ROLE_ADMIN
        if request.role != wanted:
            raise InvalidArgument(
                "role", "must be ROLE_TENANT with a tenant, or ROLE_ADMIN without one"
            )
        if is_for_tenant:
            self._tenant(request.tenant)
        key, secret = new_key(request.tenant, request.role)
        answer = await ask(self._stub.PutKey(knowledge_pb2.PutKeyRequest(key=key)))
        key_id = key.api_key.key_id
        await self._mirror.until(lambda: key_id in self._mirror.state.keys)
        return pb.CreateApiKeyResponse(api_key=answer.api_key, secret=secret)

    async def ListApiKeys(
        self, request: pb.ListApiKeysRequest, context: Context
    ) -> pb.ListApiKeysResponse:
        self._auth.admin(context.invocation_metadata())
        if request.tenant:
            self._tenant(request.tenant)
        found = [key.api_key for key in self._mirror.state.keys.values()]
        mine = [key for key in found if key.tenant == request.tenant]
        mine.sort(key=lambda key: (key.create_time.ToNanoseconds(), key.key_id))
        return pb.ListApiKeysResponse(api_keys=mine)

    async def RevokeApiKey(
        self, request: pb.RevokeApiKeyRequest, context: Context
    ) -> pb.RevokeApiKeyResponse:
        self._auth.admin(context.invocation_metadata())
        key = knowledge_pb2.Key(api_key=resources_pb2.ApiKey(key_id=request.key_id))
        await ask(self._stub.PutKey(knowledge_pb2.PutKeyRequest(key=key, revoke=True)))

        def is_seen() -> bool:
            known = self._mirror.state.keys.get(request.key_id)
            return known is None or known.api_key.HasField("revoke_time")

        await self._mirror.until(is_seen)
        return pb.RevokeApiKeyResponse()

    async def GetUsage(self, request: pb.GetUsageRequest, context: Context) -> pb.GetUsageResponse:
        self._own_or_admin(request.tenant, context)
        self._tenant(request.tenant)
        used = self._usage.of(request.tenant)
        return pb.GetUsageResponse(
            num_items=used.num_items,
            num_tokens=used.num_tokens,
            num_errors=used.num_errors,
            num_queued=self._router.queue.num_items(request.tenant),
        )

    def _own_or_admin(self, tenant: str, context: Context) -> None:
        """Another tenant is NOT_FOUND to a tenant, whether it is there or not."""
        caller = self._auth.caller(context.invocation_metadata())
        if not caller.is_admin and caller.tenant != tenant:
            raise _no_tenant(tenant)

    def _tenant(self, name: str) -> resources_pb2.Tenant:
        tenant = self._mirror.state.tenants.get(name)
        if tenant is None:
            raise _no_tenant(name)
        return tenant


def _no_tenant(name: str) -> NotFound:
    return NotFound(f"there is no tenant '{name}'", reason="TENANT_NOT_FOUND")
