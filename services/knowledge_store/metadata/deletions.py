"""Deletes what may be too much for one transaction.

Knows what belongs to what; does not know who may delete it. Each function deletes what there is
room for and says whether that was all; what is left is for the next transaction.
"""

from __future__ import annotations

from hmi.admin.v1 import resources_pb2 as rpb
from services.knowledge_store.domains.tables import delete_node
from services.knowledge_store.metadata.kinds import (
    DOMAINS,
    KEYS,
    MODELS,
    TENANTS,
    VERSIONS,
    domains_of_tenant,
    keys_of,
    models_of,
    versions_of_model,
)
from services.knowledge_store.metadata.transaction import Transaction

_READ_AT_ONCE = 1_000


async def delete_tenant(transaction: Transaction, tenant: rpb.Tenant) -> bool:
    """Delete a tenant with all that is its own.

    Keys go first, so that nobody uses what is half gone; the tenant goes last, so that what broke
    off can be called again.
    """
    if not await _delete_keys(transaction, tenant.name):
        return False
    names = await transaction.names(models_of(tenant.name))
    await transaction.load(MODELS, names)
    # In this order in the change: what refers to others before what it refers to.
    for name in names:
        model = await transaction.get(MODELS, name)
        if model is not None and not await delete_model(transaction, model):
            return False
    if not await _delete_domains(transaction, tenant.name):
        return False
    if transaction.is_full:
        return False
    transaction.delete(TENANTS, tenant)
    return True


async def delete_model(transaction: Transaction, model: rpb.Model) -> bool:
    """Delete a model and its versions; its numbers stay used."""
    names = await transaction.names(versions_of_model(model.tenant, model.name))
    for start in range(0, len(names), _READ_AT_ONCE):
        some = names[start : start + _READ_AT_ONCE]
        await transaction.load(VERSIONS, some)
        for name in some:
            if transaction.is_full:
                return False
            version = await transaction.get(VERSIONS, name)
            if version is not None:
                transaction.delete(VERSIONS, version)
    if transaction.is_full:
        return False
    transaction.set_last_version(MODELS.name(model), model.last_version)
    transaction.delete(MODELS, model)
    return True


async def _delete_keys(transaction: Transaction, tenant: str) -> bool:
    names = await transaction.names(keys_of(tenant))
    await transaction.load(KEYS, names)
    for name in names:
        if transaction.is_full:
            return False
        key = await transaction.get(KEYS, name)
        if key is not None:
            transaction.delete(KEYS, key)
    return True


async def _delete_domains(transaction: Transaction, tenant: str) -> bool:
    """Delete a tenant's own domains, leaves first; nobody else's version can read them."""
    names = await transaction.names(domains_of_tenant(tenant))
    await transaction.load(DOMAINS, names)
    for name in reversed(names):
        if transaction.is_full:
            return False
        domain = await transaction.get(DOMAINS, name)
        if domain is not None:
            await delete_node(transaction, domain)
    return True
