"""The client's calls about tenants and keys.

Knows `hmi.admin.v1.TenantService`; does not know how calls are retried.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from hmi.admin.v1 import resources_pb2, tenant_pb2
from hmi.admin.v1.tenant_pb2_grpc import TenantServiceStub
from hmi.client.resources import (
    ApiKey,
    CreatedKey,
    CreatedTenant,
    Quota,
    Role,
    Tenant,
    Usage,
)
from hmi.client.transport import Repeat, Transport
from hmi.errors import InvalidArgument

if TYPE_CHECKING:
    from hmi.admin.v1.tenant_pb2_grpc import TenantServiceAsyncStub

PAGE_SIZE = 1_000


class TenantCalls:
    """Tenants and keys; an admin key is needed unless a call says otherwise."""

    _transport: Transport

    @property
    def _tenants(self) -> TenantServiceAsyncStub:
        return TenantServiceStub(self._transport.channel)

    async def create_tenant(
        self,
        name: str,
        *,
        weight: float = 1.0,
        quota: Quota | None = None,
        shares_counts: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> CreatedTenant:
        """Create a tenant and its first key, whose secret is shown this once.

        Args:
            name: 1 to 63 of a-z, 0-9 and '-', starting with a letter.
            weight: Share of the accelerator relative to other tenants'.
            quota: Bounds; the deployment's defaults if None.
            shares_counts: Its traffic's n-gram counts may shape tables that others share.
            request_id: Makes a repetition by the caller safe; one is made up if None.

        Raises:
            InvalidArgument: Name, weight or quota.
            AlreadyExists: There is a tenant of that name.
        """
        request = tenant_pb2.CreateTenantRequest(
            tenant=_tenant(name, weight, quota or Quota(), shares_counts),
            request_id=request_id or uuid.uuid4().hex,
        )
        return CreatedTenant.from_pb(
            await self._transport.unary(self._tenants.CreateTenant, request, timeout=timeout)
        )

    async def get_tenant(self, tenant: str, *, timeout: float | None = None) -> Tenant:
        """One tenant; its own key may ask.

        Raises:
            NotFound: There is none.
        """
        request = tenant_pb2.GetTenantRequest(tenant=tenant)
        response = await self._transport.unary(self._tenants.GetTenant, request, timeout=timeout)
        return Tenant.from_pb(response.tenant)

    async def list_tenants(self, *, timeout: float | None = None) -> list[Tenant]:
        """Every tenant, in the order of their names."""
        tenants: list[Tenant] = []
        token = ""
        while True:
            request = tenant_pb2.ListTenantsRequest(page_size=PAGE_SIZE, page_token=token)
            page = await self._transport.unary(self._tenants.ListTenants, request, timeout=timeout)
            tenants += [Tenant.from_pb(one) for one in page.tenants]
            token = page.next_page_token
            if not token:
                return tenants

    async def update_tenant(
        self,
        name: str,
        *,
        weight: float,
        quota: Quota,
        shares_counts: bool = False,
        timeout: float | None = None,
    ) -> Tenant:
        """Set a tenant's weight, its quota, and whether it shares its counts.

        Raises:
            InvalidArgument: Weight or quota.
            NotFound: There is no such tenant.
        """
        request = tenant_pb2.UpdateTenantRequest(tenant=_tenant(name, weight, quota, shares_counts))
        response = await self._transport.unary(self._tenants.UpdateTenant, request, timeout=timeout)
        return Tenant.from_pb(response.tenant)

    async def delete_tenant(self, tenant: str, *, timeout: float | None = None) -> None:
        """Delete a tenant, its keys, models and versions.

        Raises:
            NotFound: There is none.
        """
        request = tenant_pb2.DeleteTenantRequest(tenant=tenant)
        await self._transport.delete(self._tenants.DeleteTenant, request, timeout=timeout)

    async def create_api_key(
        self, tenant: str = "", *, role: Role = Role.TENANT, timeout: float | None = None
    ) -> CreatedKey:
        """Make a further key, whose secret is shown this once.

        Not retried: a lost answer would leave a key behind.

        Args:
            tenant: Whose key; empty for an admin key.
            role: What it may do.

        Raises:
            InvalidArgument: The role does not fit the tenant.
            NotFound: There is no such tenant.
        """
        request = tenant_pb2.CreateApiKeyRequest(tenant=tenant, role=role.to_pb())
        return CreatedKey.from_pb(
            await self._transport.unary(
                self._tenants.CreateApiKey, request, timeout=timeout, repeat=Repeat.UNSAFE
            )
        )

    async def list_api_keys(
        self, tenant: str = "", *, timeout: float | None = None
    ) -> list[ApiKey]:
        """A tenant's keys, oldest first, revoked ones too; admin keys if empty.

        Raises:
            NotFound: There is no such tenant.
        """
        request = tenant_pb2.ListApiKeysRequest(tenant=tenant)
        response = await self._transport.unary(self._tenants.ListApiKeys, request, timeout=timeout)
        return [ApiKey.from_pb(one) for one in response.api_keys]

    async def revoke_api_key(self, key_id: str, *, timeout: float | None = None) -> None:
        """End a key; gateways refuse it within their stated staleness bound.

        Raises:
            NotFound: There is none.
        """
        request = tenant_pb2.RevokeApiKeyRequest(key_id=key_id)
        await self._transport.delete(self._tenants.RevokeApiKey, request, timeout=timeout)

    async def get_usage(self, tenant: str, *, timeout: float | None = None) -> Usage:
        """What a tenant has used on this gateway since it started; its own key may ask.

        Raises:
            NotFound: There is no such tenant.
        """
        request = tenant_pb2.GetUsageRequest(tenant=tenant)
        return Usage.from_pb(
            await self._transport.unary(self._tenants.GetUsage, request, timeout=timeout)
        )


def _tenant(name: str, weight: float, quota: Quota, shares_counts: bool) -> resources_pb2.Tenant:
    if not weight:  # would be one that is not given, which stands for 1
        raise InvalidArgument("weight must be more than 0", field="tenant.weight")
    return resources_pb2.Tenant(
        name=name, weight=weight, quota=quota.to_pb(), shares_counts=shares_counts
    )
