"""DomainService over the real store: who sees and changes what, and what a new node may be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from hmi.admin.v1 import domain_pb2 as pb
from hmi.admin.v1 import model_pb2, resources_pb2, tenant_pb2
from hmi.admin.v1.domain_pb2_grpc import DomainServiceStub
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from hmi.admin.v1.tenant_pb2_grpc import TenantServiceStub
from tests.gateway.blobs import sha256
from tests.gateway.conftest import Stack, unique
from tests.gateway.split import (
    TRIGRAMS,
    SplitBase,
    add_split_base,
    counts_blob,
    encoder_blob,
    encoder_tensors,
    materialise,
)
from tests.gateway.test_predict import expect, violation

NEWS = counts_blob([(3, 6, 7), (6, 7, 4), (3, 6, 0), (0, 6, 7)], count=9)


class Tree:
    """A split base with its root's table, two tenants, and DomainService as each of them."""

    def __init__(self, stack: Stack, base: SplitBase, tenants: tuple[str, str]) -> None:
        self.stack = stack
        self.base = base
        self.tenants = tenants
        self.stub = DomainServiceStub(stack.channel)

    def as_(self, who: str) -> Any:
        """Metadata: `admin`, `admin for NAME`, or a tenant's own key."""
        if who == "admin":
            return self.stack.as_admin
        if who.startswith("admin for "):
            return (*self.stack.as_admin, ("x-hmi-tenant", who.removeprefix("admin for ")))
        return self.stack.metadata(who)

    def create(
        self, who: str, path: str, *, counts: bytes = b"", encoder: bytes = b"", **changes: Any
    ) -> Any:
        fields = {name: changes.pop(name) for name in ("alpha", "miss_policy") if name in changes}
        domain = resources_pb2.Domain(base=self.base.name, path=path, **fields)
        cut = changes.pop("cut", 0)
        given = {
            "domain": domain, "counts_bytes": len(counts), "encoder_bytes": len(encoder),
            "counts_sha256": sha256(counts) if counts else "",
            "encoder_sha256": sha256(encoder) if encoder else "",
        }  # fmt: skip
        header = pb.CreateDomainHeader(**given | changes)
        data = counts + encoder
        return self.stub.CreateDomain(
            parts(header, data[: len(data) - cut]), metadata=self.as_(who)
        )

    async def paths(self, who: str) -> list[str]:
        request = pb.ListDomainsRequest(base=self.base.name)
        answer = await self.stub.ListDomains(request, metadata=self.as_(who))
        return [stats.domain.path for stats in answer.nodes]

    def get(self, who: str, path: str) -> Any:
        request = pb.GetDomainRequest(base=self.base.name, path=path)
        return self.stub.GetDomain(request, metadata=self.as_(who))

    def set(self, who: str, path: str, **fields: Any) -> Any:
        request = pb.SetDomainRequest(base=self.base.name, path=path, **fields)
        return self.stub.SetDomain(request, metadata=self.as_(who))

    def delete(self, who: str, path: str) -> Any:
        request = pb.DeleteDomainRequest(base=self.base.name, path=path)
        return self.stub.DeleteDomain(request, metadata=self.as_(who))

    def roll_back(self, who: str, path: str) -> Any:
        request = pb.RollBackDomainRequest(base=self.base.name, path=path)
        return self.stub.RollBackDomain(request, metadata=self.as_(who))

    def update(self, who: str, path: str = "", *, dry: bool = True) -> Any:
        request = pb.UpdateDomainsRequest(base=self.base.name, path=path, is_dry_run=dry)
        return self.stub.UpdateDomains(request, metadata=self.as_(who))


def parts(header: pb.CreateDomainHeader, data: bytes) -> Iterator[pb.CreateDomainRequest]:
    yield pb.CreateDomainRequest(header=header)
    for start in range(0, len(data), 999):
        yield pb.CreateDomainRequest(chunk=data[start : start + 999])


@pytest.fixture
async def tree(stack: Stack) -> Tree:
    base = await add_split_base(stack)
    tenants = (unique("acme"), unique("bolt"))
    for tenant in tenants:
        await stack.add_tenant(tenant)
    return Tree(stack, base, tenants)


async def test_a_domain_gets_its_table_from_its_corpus(tree: Tree) -> None:
    made = (await tree.create("admin", "news", counts=NEWS, alpha=1.0)).domain
    assert (made.path, made.tenant, made.alpha) == ("news", "", 1.0)
    assert await materialise(tree.stack, tree.base) == 4
    node = (await tree.get("admin", "news")).domain
    root = (await tree.get("admin", "")).domain
    assert node.table_version not in ("", root.table_version)
    assert node.table_number == 1
    assert node.encoder_sha256 == root.encoder_sha256
    request = pb.ListDomainsRequest(base=tree.base.name)
    nodes = (await tree.stub.ListDomains(request, metadata=tree.as_("admin"))).nodes
    assert [stats.domain.path for stats in nodes] == ["", "news"]
    assert list(nodes[1].num_entries) == [0, 2, 2]
    assert nodes[1].flat_bytes > nodes[1].size_bytes > 0


async def test_a_repeated_create_makes_one_node(tree: Tree) -> None:
    first = (await tree.create("admin", "news", request_id="once")).domain
    again = (await tree.create("admin", "news", request_id="once")).domain
    assert again.create_time == first.create_time
    await expect(grpc.StatusCode.ALREADY_EXISTS, tree.create("admin", "news"))


async def test_a_header_alone_is_checked_and_makes_nothing(tree: Tree) -> None:
    acme = tree.tenants[0]
    assert (await tree.create(acme, acme, is_dry_run=True)).domain.tenant == acme
    assert await tree.paths("admin") == [""]
    await tree.create("admin", "news")
    for status, who, path in (
        (grpc.StatusCode.ALREADY_EXISTS, "admin", "news"),
        (grpc.StatusCode.NOT_FOUND, "admin", "nowhere/news"),
        (grpc.StatusCode.INVALID_ARGUMENT, acme, "sport"),
        (grpc.StatusCode.INVALID_ARGUMENT, "admin", "NEWS"),
    ):
        await expect(status, tree.create(who, path, is_dry_run=True))


async def test_a_tenants_domain_is_its_own_and_nobody_elses(tree: Tree) -> None:
    acme, bolt = tree.tenants
    await tree.create("admin", "news")
    own = (await tree.create(acme, f"news/{acme}")).domain
    assert own.tenant == acme
    below = (await tree.create(acme, f"news/{acme}/sport")).domain
    assert below.tenant == acme
    assert await tree.paths(acme) == await tree.paths("admin")
    assert await tree.paths(bolt) == ["", "news"]
    for call in (
        tree.get(bolt, f"news/{acme}"),
        tree.set(bolt, f"news/{acme}", alpha=0.1),
        tree.delete(bolt, f"news/{acme}/sport"),
        tree.roll_back(bolt, f"news/{acme}"),
        tree.create(bolt, f"news/{acme}/mine"),
        tree.create(f"admin for {bolt}", f"news/{acme}/mine"),
    ):
        await expect(grpc.StatusCode.NOT_FOUND, call)
    assert (await tree.set(acme, f"news/{acme}", alpha=0.1)).domain.alpha == 0.1
    await tree.delete(acme, f"news/{acme}/sport")
    assert (await tree.get("admin", f"news/{acme}")).domain.alpha == 0.1


async def test_an_admin_makes_a_domain_a_tenants_by_naming_it(tree: Tree) -> None:
    acme, bolt = tree.tenants
    made = (await tree.create(f"admin for {acme}", acme)).domain
    assert made.tenant == acme
    below = (await tree.create("admin", f"{acme}/sport")).domain
    assert below.tenant == acme
    assert await tree.paths(bolt) == [""]


async def test_what_others_have_cannot_be_told_from_a_refusal_nor_taken(tree: Tree) -> None:
    acme, bolt = tree.tenants
    await tree.create(acme, acme)
    told = set()
    for who in (bolt, f"admin for {bolt}"):
        for path in (acme, "free", "news"):
            refused = tree.create(who, path)
            error = await expect(grpc.StatusCode.INVALID_ARGUMENT, refused)
            assert violation(error) == "header.domain.path"
            told.add(error.details())
        for path in (f"{acme}/x", "free/x"):
            await expect(grpc.StatusCode.NOT_FOUND, tree.create(who, path))
    assert len(told) == 1
    assert (await tree.create("admin", "news")).domain.tenant == ""
    assert (await tree.create(bolt, bolt)).domain.tenant == bolt
    assert (await tree.create(bolt, f"news/{bolt}")).domain.tenant == bolt


async def test_shared_domains_are_changed_by_admins_alone(tree: Tree) -> None:
    acme, _ = tree.tenants
    await tree.create("admin", "news")
    for call in (
        tree.set(acme, "news", alpha=0.1),
        tree.set(acme, "", alpha=0.1),
        tree.delete(acme, "news"),
        tree.roll_back(acme, "news"),
        tree.update(acme),
        tree.update(acme, "news"),
    ):
        await expect(grpc.StatusCode.PERMISSION_DENIED, call)
    await expect(grpc.StatusCode.UNAUTHENTICATED, tree.stub.ListDomains(pb.ListDomainsRequest()))


async def test_counts_are_shown_to_admins_alone(tree: Tree) -> None:
    acme, _ = tree.tenants
    stats = pb.ListDomainsRequest(base=tree.base.name)
    for who in (acme, "admin"):
        nodes = (await tree.stub.ListDomains(stats, metadata=tree.as_(who))).nodes
        for hidden in ("lookups", "counted_tokens", "num_versions", "version_bytes"):
            assert nodes[0].HasField(hidden) is (who == "admin")
        assert nodes[0].num_entries[0] == 14  # what a node holds is no secret


@pytest.mark.parametrize(
    "path",
    ["", "/", "news/", "/news", "a//b", "../up", "News", "caf\u00e9", "n\u0435ws", "news/..", "a b",
     "9news", "x" * 64, "/".join("abcdefghi"), "news\x00", "-news", "news\n"],
)  # fmt: skip
async def test_name_tricks_are_refused_with_the_path(tree: Tree, path: str) -> None:
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, tree.create("admin", path))
    assert violation(error) == "header.domain.path"
    if path:
        for call in (tree.get("admin", path), tree.delete("admin", path)):
            assert violation(await expect(grpc.StatusCode.INVALID_ARGUMENT, call)) == "path"


GOOD = counts_blob(TRIGRAMS)


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"counts": b"no counts"}, "INVALID_ARGUMENT", "counts"),
        ({"counts": counts_blob(TRIGRAMS, b"{}")}, "INVALID_ARGUMENT", "counts"),
        ({"counts": counts_blob([(0, 15, 0)])}, "INVALID_ARGUMENT", "counts"),
        ({"counts": GOOD, "counts_sha256": "0" * 64}, "INVALID_ARGUMENT", "header.counts_sha256"),
        ({"counts": GOOD, "counts_sha256": "../x"}, "INVALID_ARGUMENT", "header.counts_sha256"),
        ({"counts": GOOD, "counts_sha256": ""}, "INVALID_ARGUMENT", "header.counts_bytes"),
        ({"counts": GOOD, "counts_bytes": 9}, "INVALID_ARGUMENT", None),
        ({"counts": GOOD, "counts_bytes": 1 << 40}, "RESOURCE_EXHAUSTED", None),
        ({"counts": GOOD, "cut": 3}, "DATA_LOSS", None),
        ({"alpha": 1.5}, "INVALID_ARGUMENT", "header.domain.alpha"),
        ({"alpha": float("nan")}, "INVALID_ARGUMENT", "header.domain.alpha"),
        ({"miss_policy": 9}, "INVALID_ARGUMENT", "header.domain.miss_policy"),
        ({"request_id": "x" * 129}, "INVALID_ARGUMENT", "header.request_id"),
    ],
)
async def test_bad_domains_are_refused_and_leave_nothing(
    tree: Tree, changes: dict[str, Any], code: str, field: str | None
) -> None:
    error = await expect(grpc.StatusCode[code], tree.create("admin", "news", **changes))
    if field is not None:
        assert violation(error) == field
    assert await tree.paths("admin") == [""]


async def test_parents_bases_and_splits_must_be_there(tree: Tree) -> None:
    await expect(grpc.StatusCode.NOT_FOUND, tree.create("admin", "nowhere/news"))
    plain = pb.CreateDomainHeader(domain=resources_pb2.Domain(base="tiny", path="news"))
    call = tree.stub.CreateDomain(parts(plain, b""), metadata=tree.as_("admin"))
    await expect(grpc.StatusCode.FAILED_PRECONDITION, call)
    for name, code in (("none", "NOT_FOUND"), ("tiny", "FAILED_PRECONDITION")):
        call = tree.stub.ListDomains(pb.ListDomainsRequest(base=name), metadata=tree.as_("admin"))
        await expect(grpc.StatusCode[code], call)
    error = await expect(
        grpc.StatusCode.INVALID_ARGUMENT,
        tree.stub.ListDomains(pb.ListDomainsRequest(base="../x"), metadata=tree.as_("admin")),
    )
    assert violation(error) == "base"


async def test_an_encoder_of_its_own_must_fit_the_trees(tree: Tree) -> None:
    unsplit = tree.base.pb.split.unsplit_digest
    own = encoder_blob(unsplit, encoder_tensors(seed=7))
    made = (await tree.create("admin", "news", counts=GOOD, encoder=own)).domain
    assert made.encoder_sha256 == sha256(own)
    child = (await tree.create("admin", "news/sport")).domain
    assert child.encoder_sha256 == sha256(own)
    moved = encoder_tensors(seed=8)
    moved["positions"] = moved["positions"] + np.float16(1)
    for blob, field in (
        (encoder_blob("0" * 64), "encoder.metadata.unsplit_digest"),
        (encoder_blob(unsplit, form="sum"), "encoder.metadata.form"),
        (encoder_blob(unsplit, moved), "encoder.tensors[positions]"),
        (b"\x80\x04pickle", "encoder.blob"),
    ):
        call = tree.create("admin", "other", encoder=blob)
        assert violation(await expect(grpc.StatusCode.INVALID_ARGUMENT, call)) == field


async def test_nodes_in_use_stay(tree: Tree) -> None:
    await tree.create("admin", "news")
    await tree.create("admin", "news/sport")
    await expect(grpc.StatusCode.FAILED_PRECONDITION, tree.delete("admin", "news"))
    await expect(grpc.StatusCode.FAILED_PRECONDITION, tree.delete("admin", ""))
    await tree.delete("admin", "news/sport")
    await tree.delete("admin", "news")
    await expect(grpc.StatusCode.NOT_FOUND, tree.delete("admin", "news"))
    await expect(grpc.StatusCode.NOT_FOUND, tree.set("admin", "news", alpha=0.5))


async def test_set_changes_what_is_given_alone(tree: Tree) -> None:
    await tree.create("admin", "news", alpha=0.3)
    compute = resources_pb2.MISS_POLICY_COMPUTE
    changed = (await tree.set("admin", "news", miss_policy=compute, is_frozen=True)).domain
    assert (changed.alpha, changed.miss_policy, changed.is_frozen) == (0.3, compute, True)
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, tree.set("admin", "news", alpha=-1.0))
    assert violation(error) == "alpha"


async def test_a_rollback_returns_the_rows_before(tree: Tree) -> None:
    await tree.create("admin", "news", counts=NEWS, alpha=0.01)
    await materialise(tree.stack, tree.base)
    await expect(grpc.StatusCode.FAILED_PRECONDITION, tree.roll_back("admin", "news"))
    first = (await tree.get("admin", "news")).domain
    await tree.set("admin", "news", alpha=1.0)
    assert (await tree.update("admin", "news", dry=False)).update_id
    await materialise(tree.stack, tree.base)
    second = (await tree.get("admin", "news")).domain
    assert second.table_version != first.table_version
    await tree.roll_back("admin", "news")
    await materialise(tree.stack, tree.base)
    third = (await tree.get("admin", "news")).domain
    assert third.segments == first.segments


async def test_a_dry_run_changes_nothing(tree: Tree) -> None:
    await tree.create("admin", "news", counts=GOOD)
    await materialise(tree.stack, tree.base)
    before = (await tree.get("admin", "news")).domain
    assert (await tree.update("admin")).update_id == ""
    assert (await tree.get("admin", "news")).domain == before
    await expect(grpc.StatusCode.NOT_FOUND, tree.update("admin", "nowhere"))


async def test_a_tenant_shares_its_counts_only_when_it_was_said(tree: Tree) -> None:
    acme, _ = tree.tenants
    assert not tree.stack.app.mirror.state.tenants[acme].shares_counts
    tenants = TenantServiceStub(tree.stack.channel)
    change = resources_pb2.Tenant(name=acme, weight=1.0, shares_counts=True)
    request = tenant_pb2.UpdateTenantRequest(tenant=change)
    answer = await tenants.UpdateTenant(request, metadata=tree.as_("admin"))
    assert answer.tenant.shares_counts
    assert tree.stack.app.mirror.state.tenants[acme].shares_counts


@pytest.mark.parametrize("who", ["admin", "own"])
async def test_broken_counts_are_taken_up_where_they_ended(tree: Tree, who: str) -> None:
    counts = counts_blob([(0, n, 0) for n in range(1, 15)] + TRIGRAMS, count=len(who))
    caller = tree.tenants[0] if who == "own" else who
    path = caller if who == "own" else "news"
    await expect(grpc.StatusCode.DATA_LOSS, tree.create(caller, path, counts=counts, cut=99))
    models = ModelServiceStub(tree.stack.channel)
    asked = model_pb2.GetUploadRequest(sha256=sha256(counts))
    held = (await models.GetUpload(asked, metadata=tree.as_(caller))).committed_bytes
    assert held == len(counts) - 99
    others = await models.GetUpload(asked, metadata=tree.as_(tree.tenants[1]))
    assert others.committed_bytes == 0

    def create(offset: int, rest: bytes) -> Any:
        header = pb.CreateDomainHeader(
            domain=resources_pb2.Domain(base=tree.base.name, path=path),
            counts_sha256=sha256(counts), counts_bytes=len(counts), counts_offset=offset,
        )  # fmt: skip
        return tree.stub.CreateDomain(parts(header, rest), metadata=tree.as_(caller))

    call = create(held - 1, counts[held - 1 :])
    await expect(grpc.StatusCode.FAILED_PRECONDITION, call)
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, create(len(counts) + 1, b""))
    assert violation(error) == "header.counts_offset"
    assert (await create(held, counts[held:])).domain.path == path
