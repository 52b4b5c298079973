"""Nodes of domain trees: made, changed, deleted, returned to the rows they had.

Knows what a node may be and what may be done to it when; does not know how rows are chosen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as pb
from services.common.errors import AlreadyExists, FailedPrecondition, ResourceExhausted
from services.common.failpoints import Reach
from services.common.ids import check_own_path, domain_label, parent_path
from services.knowledge_store.domains import checks
from services.knowledge_store.domains.drafts import Draft
from services.knowledge_store.domains.key_blobs import KeyBlobs
from services.knowledge_store.domains.naming import change_versions
from services.knowledge_store.domains.options import DEFAULT_ALPHA, DomainOptions
from services.knowledge_store.domains.planner import Planner
from services.knowledge_store.domains.planning import check_idle
from services.knowledge_store.domains.records import Corpus, Table, get_updates
from services.knowledge_store.domains.tables import Tree, born, delete_node, no_domain, split_base
from services.knowledge_store.metadata.bases import BlobSizes
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import (
    DOMAINS,
    domain_name,
    domains_of_tenant,
    versions_of_domain,
)
from services.knowledge_store.metadata.tenants import check_request_id, existing_tenant, timestamp
from services.knowledge_store.metadata.transaction import Transaction

_SETTINGS = ("miss_policy", "alpha", "byte_budget", "half_life_tokens", "is_frozen")


class Domains:
    """Changes of nodes.

    Args:
        on_created: Called with base, path and when it was born, in nanoseconds, as a node is made.
        on_deleted: Called with base and path once a node is gone.
        reach: Called at the failpoints.
    """

    def __init__(
        self,
        database: Database,
        planner: Planner,
        key_blobs: KeyBlobs,
        blob_sizes: BlobSizes,
        options: DomainOptions,
        *,
        request_id_ttl_s: int,
        on_created: Callable[[str, str, int], None],
        on_deleted: Callable[[str, str], None],
        reach: Reach,
    ) -> None:
        self._database = database
        self._planner = planner
        self._key_blobs = key_blobs
        self._blob_sizes = blob_sizes
        self._options = options
        self._request_id_ttl_s = request_id_ttl_s
        self._on_created = on_created
        self._on_deleted = on_deleted
        self._reach = reach

    async def create(self, wanted: rpb.Domain, counts_sha256: str, request_id: str) -> rpb.Domain:
        """Add a node and plan its first table.

        Raises:
            InvalidArgument: A field, a tenant's path that is not in its name, or counts that are
                not of this base.
            NotFound: Base, tenant or parent; another tenant's parent is none.
            AlreadyExists: The path.
            FailedPrecondition: The base is not split, or replaced meanwhile, or a blob missing.
            ResourceExhausted: The tree is too large, or the disk full.
        """
        checks.check_new(wanted, counts_sha256)
        check_request_id("request_id", request_id)
        node, made = await self._database.change(lambda t: self._new_node(t, wanted, request_id))
        if made is not None:
            return made
        corpus, draft, digest = None, None, ""
        if counts_sha256:
            corpus, digest = await self._corpus(node, counts_sha256)
            draft = await self._planner.first_draft(node.base, node, corpus)

        async def create(transaction: Transaction) -> rpb.Domain:
            added, made = await self._new_node(transaction, wanted, request_id)
            if made is not None:
                return made
            if corpus is not None:
                await _check_same(transaction, node, added, digest)
            return await self._add(transaction, added, corpus, draft, request_id)

        created = await change_versions(self._database, self._key_blobs, create)
        self._reach("after_plan", 1)
        return created

    async def set(self, request: pb.SetDomainRequest) -> rpb.Domain:
        """Change a node's settings; unset ones stay.

        Raises:
            InvalidArgument: A field.
            NotFound: Base or node.
            FailedPrecondition: The base is not split.
        """
        checks.check_settings("", request)

        async def change(transaction: Transaction) -> rpb.Domain:
            tree = await Tree.load(transaction, request.base)
            node = tree.node(request.path)
            before = node.SerializeToString(deterministic=True)
            for name in _SETTINGS:
                if request.HasField(name):  # type: ignore[arg-type]
                    setattr(node, name, getattr(request, name))
            if request.HasField("byte_budget"):
                checks.check_budget("byte_budget", node, self._options.max_tenant_bytes)
            node.miss_policy = node.miss_policy or rpb.MISS_POLICY_BACKOFF
            node.alpha = node.alpha or DEFAULT_ALPHA
            if node.SerializeToString(deterministic=True) != before:
                tree.put(node)
                if request.HasField("miss_policy"):
                    await tree.name_versions([request.path], self._blob_sizes)
            return node

        return await change_versions(self._database, self._key_blobs, change)

    async def delete(self, base: str, path: str) -> None:
        """Delete a leaf, and its part of an update.

        Raises:
            NotFound: Base or node.
            FailedPrecondition: The base is not split, versions read the node, it has children, or
                it is the root.
        """

        async def delete(transaction: Transaction) -> None:
            tree = await Tree.load(transaction, base)
            node = tree.node(path)
            if not path:
                raise FailedPrecondition("the root goes with its base", reason="ROOT_DOMAIN")
            if below := tree.below(path):
                raise FailedPrecondition(
                    f"domain {path} has sub-domains such as {below[0]}: delete them first",
                    reason="DOMAIN_HAS_CHILDREN",
                )
            if num_versions := await transaction.count(versions_of_domain(base, path)):
                raise FailedPrecondition(
                    f"{num_versions} versions read domain {path}: delete them first",
                    reason="DOMAIN_IN_USE",
                )
            await delete_node(transaction, node)

        await self._database.change(delete)
        await asyncio.to_thread(self._on_deleted, base, path)

    async def roll_back(self, base: str, path: str) -> rpb.Domain:
        """Return a node to the rows before its last commit; again returns to those after it.

        Raises:
            NotFound: Base or node.
            FailedPrecondition: The base is not split, there is none before, or an update is being
                worked on.
            ResourceExhausted: The disk is full.
        """

        async def roll_back(transaction: Transaction) -> rpb.Domain:
            tree = await Tree.load(transaction, base)
            node = tree.node(path)
            check_idle(await get_updates(transaction, base), {path})
            table = tree.tables[path]
            if table.previous is None:
                raise FailedPrecondition(
                    f"{domain_label(path)} has no rows to go back to", reason="NO_PREVIOUS_TABLE"
                )
            tree.set_rows(node, table, table.previous, previous=table.rows)
            await tree.name_versions([path], self._blob_sizes)
            return tree.nodes[path]

        return await change_versions(self._database, self._key_blobs, roll_back)

    async def _new_node(
        self, transaction: Transaction, wanted: rpb.Domain, request_id: str
    ) -> tuple[rpb.Domain, rpb.Domain | None]:
        """The node to add, and what `request_id` made already, if it did."""
        base = await split_base(transaction, wanted.base)
        parent = await transaction.get(DOMAINS, domain_name(base.name, parent_path(wanted.path)))
        if wanted.tenant:
            await existing_tenant(transaction, wanted.tenant)
        if parent is None or (wanted.tenant and parent.tenant not in ("", wanted.tenant)):
            raise no_domain(base.name, parent_path(wanted.path))
        if wanted.tenant and not parent.tenant:
            check_own_path("domain.path", wanted.path, wanted.tenant)
        held = await transaction.get(DOMAINS, domain_name(base.name, wanted.path))
        if held is not None:
            key = _request_key(held, request_id)
            is_own = request_id and held.tenant in (wanted.tenant, parent.tenant)
            if is_own and key in await transaction.recall([key]):
                return held, held
            raise AlreadyExists(f"base {base.name} has a domain {wanted.path}")
        node = rpb.Domain(
            base=base.name,
            path=wanted.path,
            tenant=wanted.tenant or parent.tenant,
            miss_policy=wanted.miss_policy or rpb.MISS_POLICY_BACKOFF,
            encoder_sha256=wanted.encoder_sha256 or parent.encoder_sha256,
            alpha=wanted.alpha or DEFAULT_ALPHA,
            byte_budget=wanted.byte_budget,
            half_life_tokens=wanted.half_life_tokens,
            is_frozen=wanted.is_frozen,
            create_time=timestamp(),
        )
        checks.check_budget("domain.byte_budget", node, self._options.max_tenant_bytes)
        return node, None

    async def _corpus(self, node: rpb.Domain, counts_sha256: str) -> tuple[Corpus, str]:
        """A node's corpus, and the digest of the base that it was checked against."""
        sizes = await self._blob_sizes([counts_sha256])
        checks.check_counts(
            node, sizes.get(counts_sha256, 0), self._options.max_tenant_counts_bytes
        )
        base, root = await self._database.change(lambda t: _base_and_root(t, node.base))
        counts = await self._key_blobs.read_counts(
            "counts", counts_sha256, base.tokenizer_digest, root.vocab_size
        )
        return Corpus(sha256=counts_sha256, num_tokens=counts.num_tokens), base.digest

    async def _add(
        self,
        transaction: Transaction,
        node: rpb.Domain,
        corpus: Corpus | None,
        draft: Draft | None,
        request_id: str,
    ) -> rpb.Domain:
        tree = await Tree.load(transaction, node.base)
        await self._check_room(transaction, tree, node.tenant)
        blobs = {node.encoder_sha256, *({corpus.sha256} if corpus else ())}
        for sha256 in sorted(blobs - (await self._blob_sizes(blobs)).keys()):
            raise FailedPrecondition(
                f"there is no blob {sha256}: write it first", reason="BLOB_MISSING"
            )
        if draft is not None and not await self._planner.start(transaction, draft):
            raise FailedPrecondition("planning took too long: retry", reason="BLOB_MISSING")
        node.is_updating = draft is not None
        corpora = (corpus,) if corpus else ()
        tree.put(node, Table(is_ready=draft is None, corpora=corpora))
        await tree.name_versions([node.path], self._blob_sizes)
        if request_id:
            transaction.remember(_request_key(node, request_id), b"", ttl_s=self._request_id_ttl_s)
        # Even if this fails to be committed: whose counts there may be of the path, it is gone.
        await asyncio.to_thread(self._on_created, node.base, node.path, born(node))
        return tree.nodes[node.path]

    async def _check_room(self, transaction: Transaction, tree: Tree, tenant: str) -> None:
        if len(tree.nodes) >= self._options.max_domains:
            raise ResourceExhausted(
                f"base {tree.base.name} may have {self._options.max_domains} domains",
                subject="store/max_domains",
                reason="TOO_MANY_DOMAINS",
            )
        num_own = await transaction.count(domains_of_tenant(tenant)) if tenant else 0
        if num_own >= self._options.max_tenant_domains:
            raise ResourceExhausted(
                f"tenant {tenant} may have {self._options.max_tenant_domains} domains",
                subject=f"tenant:{tenant}/max_domains",
                reason="TOO_MANY_DOMAINS",
            )


async def _check_same(
    transaction: Transaction, planned: rpb.Domain, added: rpb.Domain, digest: str
) -> None:
    """Refuse a first table that was planned for another base of the name, or another encoder.

    Raises:
        FailedPrecondition: It was.
    """
    base = await split_base(transaction, added.base)
    if base.digest != digest or added.encoder_sha256 != planned.encoder_sha256:
        raise FailedPrecondition(
            f"base {base.name} or the domain's parent was replaced meanwhile: retry",
            reason="BASE_CHANGED",
        )


async def _base_and_root(transaction: Transaction, base_name: str) -> tuple[rpb.Base, Table]:
    tree = await Tree.load(transaction, base_name)
    return tree.base, tree.tables[""]


def _request_key(node: rpb.Domain, request_id: str) -> str:
    return f"hmi:request:domain:{node.base}/{node.path}:{born(node)}:{request_id}"
