"""What a tenant's own domains may cost; those that admins share are theirs to size."""

from __future__ import annotations

from pathlib import Path

from grpc import StatusCode

from hmi.knowledge.v1 import domain_pb2 as dpb
from tests.knowledge_store.domain_worlds import (
    HIDDEN,
    add_split_base,
    create_domain,
    do_all_work,
    key,
    stats,
)
from tests.knowledge_store.stores import add_tenant, fails, running

MANY = {key(n, n, n): 9 for n in range(1, 40)}
ROW_BYTES = 2 * HIDDEN


async def test_a_tenants_budget_is_capped_whatever_it_asks_for(tmp_path: Path) -> None:
    async with running(tmp_path, max_tenant_domain_bytes=5 * ROW_BYTES) as store:
        base = await add_split_base(store)
        await add_tenant(store)
        wanted = create_domain(store, "acme", tenant="acme", byte_budget=5 * ROW_BYTES + 1)
        error = await fails(wanted, StatusCode.INVALID_ARGUMENT)
        assert error.message == "domain.byte_budget: a tenant's domain may have 40 bytes at most"
        # One that names no budget has the deployment's, as far as a tenant's may go.
        await create_domain(store, "acme", MANY, tenant="acme", alpha=1.0)
        await create_domain(store, "shared", MANY, alpha=1.0, byte_budget=1 << 40)
        await do_all_work(store, base)
        nodes = await stats(store)
        assert sum(nodes["acme"].num_entries) == 5
        assert sum(nodes["shared"].num_entries) == len(MANY)
        request = dpb.SetDomainRequest(base="hminilm", path="acme", byte_budget=1 << 50)
        error = await fails(store.stub.SetDomain(request), StatusCode.INVALID_ARGUMENT)
        assert error.message.startswith("byte_budget: ")
        request.path = "shared"
        await store.stub.SetDomain(request)


async def test_a_tenants_counts_are_capped(tmp_path: Path) -> None:
    async with running(tmp_path, max_tenant_counts_bytes=700) as store:
        await add_split_base(store)
        await add_tenant(store)
        wanted = create_domain(store, "acme", MANY, tenant="acme")
        error = await fails(wanted, StatusCode.INVALID_ARGUMENT)
        assert error.message.startswith("counts: of a tenant's domain may take 700 bytes, not ")
        await create_domain(store, "acme", {key(1, 1, 1): 9}, tenant="acme")
        below = create_domain(store, "acme/below", MANY)
        await fails(below, StatusCode.INVALID_ARGUMENT)
        await create_domain(store, "shared", MANY)
