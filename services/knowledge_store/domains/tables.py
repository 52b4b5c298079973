"""A tree's nodes and tables within one transaction: which are ready, and what commits change.

Knows Domain and Table and how manifests follow from them; does not know plans, leases or RPCs.
A transaction names manifests that are written, so what is named is there.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.errors import FailedPrecondition, NotFound
from services.knowledge_store.domains.manifests import manifest, path_to
from services.knowledge_store.domains.records import (
    NodeUpdate,
    Rows,
    SegmentRecord,
    Table,
    delete_update,
    get_table,
    get_updates,
    put_table,
    put_update,
)
from services.knowledge_store.metadata.kinds import (
    BASES,
    DOMAINS,
    SUMS,
    domain_name,
    domains_of,
    version_bytes_of_domain,
)
from services.knowledge_store.metadata.transaction import Transaction

if TYPE_CHECKING:
    from services.knowledge_store.metadata.bases import BlobSizes


class ManifestsMissing(Exception):
    """Manifests that are to be named are to be written first."""

    def __init__(self, manifests: Sequence[bytes]) -> None:
        super().__init__(f"{len(manifests)} manifests are not written yet")
        self.manifests = manifests


@dataclass
class Tree:
    """A base's nodes as a transaction sees and changes them.

    Attributes:
        base: The split base.
        nodes: By path, parents before children.
        tables: By path.
    """

    transaction: Transaction
    base: rpb.Base
    nodes: dict[str, rpb.Domain] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)

    @classmethod
    async def load(cls, transaction: Transaction, base_name: str) -> Tree:
        """All of a tree.

        Raises:
            NotFound: There is no such base.
            FailedPrecondition: It is not split.
        """
        base = await split_base(transaction, base_name)
        tree = cls(transaction, base)
        names = await transaction.names(domains_of(base_name))
        await transaction.load(DOMAINS, names)
        for name in names:
            node = await transaction.get(DOMAINS, name)
            if node is not None:
                tree.nodes[node.path] = node
                tree.tables[node.path] = await get_table(transaction, base_name, node.path)
        return tree

    def node(self, path: str) -> rpb.Domain:
        """One node.

        Raises:
            NotFound: There is none.
        """
        node = self.nodes.get(path)
        if node is None:
            raise NotFound(
                f"base {self.base.name} has no domain {path!r}", reason="DOMAIN_NOT_FOUND"
            )
        return node

    def is_ready(self, path: str) -> bool:
        """Whether the node and all above it are past their first updates."""
        return all(self.tables[above].is_ready for above in path_to(path))

    def below(self, path: str) -> list[str]:
        """Paths of the nodes under a node, it not included, parents before children."""
        return [other for other in self.nodes if is_below(other, path)]

    def put(self, node: rpb.Domain, table: Table | None = None) -> None:
        """Keep a changed node, and its table if that changed too."""
        self.nodes[node.path] = node
        self.transaction.put(DOMAINS, node)
        if table is not None:
            self.tables[node.path] = table
            put_table(self.transaction, self.base.name, node.path, table)

    def commit(self, update: NodeUpdate, written: Iterable[SegmentRecord]) -> None:
        """Give a node the rows of its part of an update."""
        node, table = self.nodes[update.path], self.tables[update.path]
        rows = Rows(
            segments=(*update.kept, *written, *update.removals),
            keys_sha256=update.keys_sha256,
            num_entries=update.num_entries,
        )
        has_previous = node.table_number and not update.is_repair
        self.set_rows(node, table, rows, previous=table.rows if has_previous else None)

    def set_rows(
        self, node: rpb.Domain, table: Table, rows: Rows, *, previous: Rows | None
    ) -> None:
        """Commit rows, whatever they come from."""
        node.table_number += 1
        node.is_updating = False
        del node.segments[:]
        node.segments.extend(segment.to_pb() for segment in rows.segments)
        changed = {"is_ready": True, "rows": rows, "previous": previous}
        self.put(node, table.model_copy(update={**changed, "commit_time_s": time.time()}))

    async def name_versions(self, changed: Iterable[str], blob_sizes: BlobSizes) -> None:
        """Name the manifests of changed nodes and of all below them; see `naming`.

        Raises:
            ManifestsMissing: Some are not written yet.
        """
        paths = {below for path in changed for below in (path, *self.below(path))}
        written: dict[str, bytes] = {}
        versions: dict[str, str] = {}
        for path in sorted(paths & self.nodes.keys()):
            if self.is_ready(path):
                nodes = [self.nodes[above] for above in path_to(path)]
                data = manifest(self.base.digest, nodes)
                versions[path] = hashlib.sha256(data).hexdigest()
                written[versions[path]] = data
        # Where no blob is collected: in the transaction that names them.
        held = await blob_sizes(written)
        if missing := [data for sha256, data in written.items() if sha256 not in held]:
            raise ManifestsMissing(missing)
        for path, version in versions.items():
            node = self.nodes[path]
            if node.table_version != version:
                node.table_version = version
                self.put(node)


def born(node: rpb.Domain) -> int:
    """When a node was made, nanoseconds: tells it from others that had its path."""
    return node.create_time.ToNanoseconds()


def is_below(path: str, ancestor: str) -> bool:
    """Whether `path` is under `ancestor`; nothing is under itself."""
    return path != ancestor and (not ancestor or path.startswith(f"{ancestor}/"))


async def split_base(transaction: Transaction, name: str) -> rpb.Base:
    """A base with tables.

    Raises:
        NotFound: There is no such base.
        FailedPrecondition: It is not split.
    """
    base = await transaction.get(BASES, name)
    if base is None:
        raise NotFound(f"there is no base {name}", reason="BASE_NOT_FOUND")
    if not base.HasField("split"):
        raise FailedPrecondition(
            f"base {name} is not split: it has no domains", reason="BASE_NOT_SPLIT"
        )
    return base


async def visible_domain(transaction: Transaction, base: str, path: str, tenant: str) -> rpb.Domain:
    """A node that a tenant may use.

    Raises:
        NotFound: There is none, or it is another tenant's.
    """
    node = await transaction.get(DOMAINS, domain_name(base, path))
    if node is None or node.tenant not in ("", tenant):
        raise no_domain(base, path)
    return node


def no_domain(base: str, path: str) -> NotFound:
    """The error for a node that is not there, or not for this caller."""
    return NotFound(f"base {base} has no domain {path!r}", reason="DOMAIN_NOT_FOUND")


async def delete_node(transaction: Transaction, node: rpb.Domain) -> None:
    """Delete a node, whatever reads it, with its table and its part of an update."""
    for update in await get_updates(transaction, node.base):
        mine = [part for part in update.nodes if part.path == node.path]
        if mine:
            delete_update(transaction, update.model_copy(update={"nodes": tuple(mine)}))
            rest = tuple(part for part in update.nodes if part.path != node.path)
            if rest:
                put_update(transaction, update.model_copy(update={"nodes": rest}), ())
    transaction.delete(DOMAINS, node)
    put_table(transaction, node.base, node.path, None)
    transaction.put_record(SUMS, version_bytes_of_domain(node.base, node.path), None)
