"""Tenants and their keys.

Knows what may be changed when; does not know RPCs or Redis.
"""

from __future__ import annotations

import math
import re

from google.protobuf.timestamp_pb2 import Timestamp

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from services.common.ids import check_name
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.deletions import delete_tenant
from services.knowledge_store.metadata.kinds import KEYS, TENANTS, keys_of
from services.knowledge_store.metadata.transaction import Transaction

ADMIN_KEY_ID = "admin"
MAX_REQUEST_ID_CHARACTERS = 128

_KEY_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
_SHA256_BYTES = 32


def timestamp() -> Timestamp:
    """Now."""
    now = Timestamp()
    now.GetCurrentTime()
    return now


def check_request_id(field: str, value: str) -> None:
    """Raise InvalidArgument if a request_id is too long."""
    if len(value) > MAX_REQUEST_ID_CHARACTERS:
        raise InvalidArgument(field, f"at most {MAX_REQUEST_ID_CHARACTERS} characters")


class Tenants:
    """Changes of tenants and keys."""

    def __init__(self, database: Database, *, request_id_ttl_s: int) -> None:
        self._database = database
        self._request_id_ttl_s = request_id_ttl_s

    async def create(
        self, tenant: rpb.Tenant, first_key: pb.Key | None, request_id: str
    ) -> tuple[rpb.Tenant, bool]:
        """Create a tenant with its first key; returns it, and whether `request_id` was a repeat.

        Raises:
            InvalidArgument: A field, or a request_id that created another tenant.
            AlreadyExists: The tenant, or the key's id.
        """
        wanted = _checked_tenant(tenant)
        check_request_id("request_id", request_id)
        if first_key is not None:
            first_key = _checked_first_key(first_key, wanted.name)
        remembered_as = f"hmi:request:tenant:{request_id}"

        async def create(transaction: Transaction) -> tuple[rpb.Tenant, bool]:
            held = await transaction.get(TENANTS, wanted.name)
            if request_id:
                made = (await transaction.recall([remembered_as])).get(remembered_as)
                if made is not None and made != wanted.name.encode():
                    raise InvalidArgument("request_id", "was used for another tenant")
                if made is not None and held is not None:
                    return held, True
            if held is not None:
                raise AlreadyExists(f"tenant {wanted.name} exists")
            wanted.create_time.CopyFrom(timestamp())
            transaction.put(TENANTS, wanted)
            if first_key is not None:
                await _add_key(transaction, first_key)
            if request_id:
                name = wanted.name.encode()
                transaction.remember(remembered_as, name, ttl_s=self._request_id_ttl_s)
            return wanted, False

        return await self._database.change(create)

    async def update(self, tenant: rpb.Tenant) -> rpb.Tenant:
        """Change weight, quota and whether its counts are shared.

        Raises:
            InvalidArgument: A field.
            NotFound: The tenant.
        """
        wanted = _checked_tenant(tenant)

        async def update(transaction: Transaction) -> rpb.Tenant:
            held = await existing_tenant(transaction, wanted.name)
            wanted.create_time.CopyFrom(held.create_time)
            if wanted != held:
                transaction.put(TENANTS, wanted)
            return wanted

        return await self._database.change(update)

    async def delete(self, name: str) -> None:
        """Delete a tenant with its keys, models and versions, in as many changes as it takes.

        Raises:
            NotFound: The tenant.
        """

        async def delete(transaction: Transaction) -> bool:
            return await delete_tenant(transaction, await existing_tenant(transaction, name))

        while not await self._database.change(delete):
            pass

    async def add_key(self, key: pb.Key) -> rpb.ApiKey:
        """Add a key. The same key again is answered as it was.

        Raises:
            InvalidArgument: A field.
            NotFound: The tenant.
            AlreadyExists: Another key has its id.
        """
        wanted = _checked_key(key)

        async def add(transaction: Transaction) -> rpb.ApiKey:
            if wanted.api_key.tenant:
                await existing_tenant(transaction, wanted.api_key.tenant)
            return await _add_key(transaction, wanted)

        return await self._database.change(add)

    async def revoke_key(self, key_id: str) -> rpb.ApiKey:
        """Revoke a key; it is kept, with the time. Again changes nothing.

        Raises:
            NotFound: The key.
            FailedPrecondition: It is the last admin key: nobody could make another.
        """

        async def revoke(transaction: Transaction) -> rpb.ApiKey:
            key = await transaction.get(KEYS, key_id)
            if key is None:
                raise NotFound(f"there is no key {key_id}")
            if not key.api_key.HasField("revoke_time"):
                if await _valid_admin_keys(transaction) == {key_id}:
                    raise FailedPrecondition(
                        f"{key_id} is the last admin key: make another before revoking it",
                        reason="LAST_ADMIN_KEY",
                    )
                key.api_key.revoke_time.CopyFrom(timestamp())
                transaction.put(KEYS, key)
            return key.api_key

        return await self._database.change(revoke)

    async def set_admin_key(self, secret_sha256: bytes) -> None:
        """Let the secret of this hash, and no other, open the key "admin".

        A revoked secret stays revoked, unless no admin key is left: a leaked one must not come back
        with a restart, and a store that nobody may administer is of no use.
        """

        async def set_key(transaction: Transaction) -> None:
            held = await transaction.get(KEYS, ADMIN_KEY_ID)
            is_same = held is not None and held.secret_sha256 == secret_sha256
            if is_same and await _valid_admin_keys(transaction):
                return
            api_key = rpb.ApiKey(key_id=ADMIN_KEY_ID, role=rpb.ROLE_ADMIN, create_time=timestamp())
            transaction.put(KEYS, pb.Key(api_key=api_key, secret_sha256=secret_sha256))

        await self._database.change(set_key)


async def existing_tenant(transaction: Transaction, name: str) -> rpb.Tenant:
    """The tenant.

    Raises:
        NotFound: There is none.
    """
    tenant = await transaction.get(TENANTS, name)
    if tenant is None:
        raise NotFound(f"there is no tenant {name}", reason="TENANT_NOT_FOUND")
    return tenant


async def _valid_admin_keys(transaction: Transaction) -> set[str]:
    """Ids of the admin keys that are not revoked; they belong to no tenant."""
    key_ids = await transaction.names(keys_of(""))
    await transaction.load(KEYS, key_ids)
    keys = [await transaction.get(KEYS, key_id) for key_id in key_ids]
    return {
        key.api_key.key_id
        for key in keys
        if key is not None and not key.api_key.HasField("revoke_time")
    }


async def _add_key(transaction: Transaction, key: pb.Key) -> rpb.ApiKey:
    held = await transaction.get(KEYS, key.api_key.key_id)
    if held is None:
        key.api_key.create_time.CopyFrom(timestamp())
        transaction.put(KEYS, key)
        return key.api_key
    is_same = (held.secret_sha256, held.api_key.tenant, held.api_key.role) == (
        key.secret_sha256, key.api_key.tenant, key.api_key.role,
    )  # fmt: skip
    if not is_same:
        raise AlreadyExists(f"key {key.api_key.key_id} exists")
    return held.api_key


def _checked_tenant(tenant: rpb.Tenant) -> rpb.Tenant:
    """The tenant with its defaults; InvalidArgument names a bad field."""
    check_name("tenant.name", tenant.name)
    weight = tenant.weight or 1.0
    if not (math.isfinite(weight) and weight > 0):
        raise InvalidArgument("tenant.weight", "must be a positive number")
    for field in ("requests_per_second", "tokens_per_second"):
        rate = getattr(tenant.quota, field)
        if not (math.isfinite(rate) and rate >= 0):
            raise InvalidArgument(f"tenant.quota.{field}", "must be a number, 0 or more")
    return rpb.Tenant(
        name=tenant.name, weight=weight, quota=tenant.quota, shares_counts=tenant.shares_counts
    )


def _checked_first_key(key: pb.Key, tenant: str) -> pb.Key:
    if key.api_key.tenant not in ("", tenant):
        raise InvalidArgument("first_key.api_key.tenant", f"must be {tenant}")
    own = pb.Key()
    own.CopyFrom(key)
    own.api_key.tenant = tenant
    own.api_key.role = own.api_key.role or rpb.ROLE_TENANT
    return _checked_key(own)


def _checked_key(key: pb.Key) -> pb.Key:
    """What is kept of a new key; InvalidArgument names a bad field."""
    given = key.api_key
    if not _KEY_ID.fullmatch(given.key_id) or given.key_id == ADMIN_KEY_ID:
        raise InvalidArgument(
            "key.api_key.key_id", f"must be 1 to 64 letters, digits or '-', not {ADMIN_KEY_ID!r}"
        )
    if len(key.secret_sha256) != _SHA256_BYTES:
        raise InvalidArgument("key.secret_sha256", "must be a sha256, 32 bytes")
    if given.role not in (rpb.ROLE_TENANT, rpb.ROLE_ADMIN):
        raise InvalidArgument("key.api_key.role", "must be ROLE_TENANT or ROLE_ADMIN")
    if bool(given.tenant) != (given.role == rpb.ROLE_TENANT):
        raise InvalidArgument("key.api_key.tenant", "a tenant's key has one, an admin's has none")
    api_key = rpb.ApiKey(key_id=given.key_id, tenant=given.tenant, role=given.role)
    return pb.Key(api_key=api_key, secret_sha256=key.secret_sha256)
