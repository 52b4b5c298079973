"""Whose credential a call carries, and for which tenant it acts.

Knows keys by their sha256, from the mirror; does not know what the call wants. Secrets are never
logged or kept.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable

from hmi.admin.v1 import resources_pb2
from services.common.errors import (
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from services.common.logs import tenant_var
from services.gateway.domain import Caller
from services.gateway.mirror import Mirror

logger = logging.getLogger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]


class Authenticator:
    """Resolves credentials.

    Args:
        mirror: The keys.
        max_staleness_s: How long they are believed after the store was last heard.
    """

    def __init__(self, mirror: Mirror, max_staleness_s: float) -> None:
        self._mirror = mirror
        self._max_staleness_s = max_staleness_s

    @property
    def is_ready(self) -> bool:
        """Whether keys are believed. If not, every call is answered UNAVAILABLE."""
        return self._mirror.staleness_s <= self._max_staleness_s

    def caller(self, metadata: Metadata | None) -> Caller:
        """Who calls.

        Raises:
            Unauthenticated: No key, an unknown key, a revoked key.
            PermissionDenied: `x-hmi-tenant` names another tenant than the key's own.
            NotFound: An admin acts for a tenant that is not there.
            Unavailable: The keys are too old to be believed.
        """
        secret = tenant = ""
        for name, value in metadata or ():
            if name == "authorization":
                secret = _text(value)
            elif name == "x-hmi-tenant":
                tenant = _text(value)
        key = self._key(secret)
        is_admin = key.role == resources_pb2.ROLE_ADMIN
        if tenant:
            if not is_admin and tenant != key.tenant:
                raise PermissionDenied(
                    "only an admin key may act for another tenant (x-hmi-tenant)",
                    reason="NOT_ADMIN",
                )
            if tenant not in self._mirror.state.tenants:
                raise NotFound(f"there is no tenant '{tenant}'", reason="TENANT_NOT_FOUND")
        acts_for_another = bool(tenant) and is_admin
        tenant = tenant or key.tenant
        tenant_var.set(tenant)  # the line below names it
        if acts_for_another:
            logger.info("an admin acts for a tenant", extra={"key_id": key.key_id})
        return Caller(key.key_id, tenant, is_admin)

    def tenant_caller(self, metadata: Metadata | None) -> Caller:
        """Who calls, where a tenant is needed.

        Raises:
            InvalidArgument: An admin who names no tenant.
            Unauthenticated, PermissionDenied, NotFound, Unavailable: As `caller`.
        """
        caller = self.caller(metadata)
        if not caller.tenant:
            raise InvalidArgument("x-hmi-tenant", "an admin key must name the tenant to act for")
        return caller

    def admin(self, metadata: Metadata | None) -> Caller:
        """Who calls, where only an admin may.

        Raises:
            PermissionDenied: Not an admin key.
            Unauthenticated, NotFound, Unavailable: As `caller`.
        """
        caller = self.caller(metadata)
        if not caller.is_admin:
            raise PermissionDenied("this needs an admin key", reason="NOT_ADMIN")
        return caller

    def check_still_valid(self, caller: Caller) -> None:
        """That a long stream's key has not been revoked since.

        Raises:
            Unauthenticated, Unavailable: As `caller`.
        """
        self._check_fresh()
        key = self._mirror.state.keys.get(caller.key_id)
        if key is None or key.api_key.HasField("revoke_time"):
            raise Unauthenticated("the API key was revoked", reason="KEY_REVOKED")

    def _key(self, authorization: str) -> resources_pb2.ApiKey:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise Unauthenticated(
                "send an API key: metadata 'authorization: Bearer KEY'", reason="NO_KEY"
            )
        self._check_fresh()
        digest = hashlib.sha256(secret.strip().encode()).digest()
        key = self._mirror.state.keys_by_hash.get(digest)
        if key is None:
            raise Unauthenticated("the API key is unknown or revoked", reason="UNKNOWN_KEY")
        return key

    def _check_fresh(self) -> None:
        if not self.is_ready:
            raise Unavailable(
                "keys cannot be checked: the knowledge store has been away for too long",
                reason="KEYS_STALE",
                retry_after_s=1.0,
            )


def _text(value: str | bytes) -> str:
    return value if isinstance(value, str) else value.decode("utf-8", "replace")
