"""What a tree's nodes hold and do.

Knows where each number comes from; changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp

from hmi.admin.v1 import domain_pb2 as dpb
from hmi.admin.v1 import resources_pb2 as rpb
from services.knowledge_store.domains.key_blobs import row_bytes
from services.knowledge_store.domains.manifests import path_to
from services.knowledge_store.domains.options import DomainOptions
from services.knowledge_store.domains.records import Table
from services.knowledge_store.domains.sources import counted_tokens
from services.knowledge_store.domains.tables import Tree
from services.knowledge_store.frequency import Frequencies
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import VERSIONS, versions_of_domain
from services.knowledge_store.metadata.transaction import Transaction

_KEY_BYTES = 8


@dataclass(frozen=True)
class _Counted:
    """What frequencies say of a tree, by path."""

    clocks: Mapping[str, float]
    half_lives: Mapping[str, float]
    traffic: Mapping[str, float]


class Statistics:
    """Reads statistics."""

    def __init__(
        self, database: Database, frequencies: Frequencies, options: DomainOptions
    ) -> None:
        self._database = database
        self._frequencies = frequencies
        self._options = options

    async def of(self, base_name: str) -> list[dpb.DomainStats]:
        """A tree's, parents before children.

        Raises:
            NotFound: There is no such base.
            FailedPrecondition: It is not split.
        """

        async def read(transaction: Transaction) -> list[dpb.DomainStats]:
            tree = await Tree.load(transaction, base_name)
            counted = self._counted(tree)
            stats = []
            for node in tree.nodes.values():
                one = self._node(tree, node, counted)
                one.num_versions, one.version_bytes = await _versions(transaction, node)
                stats.append(one)
            return stats

        return await self._database.change(read)

    def _counted(self, tree: Tree) -> _Counted:
        base = tree.base.name
        half_lives = {path: self._options.half_life_of(node) for path, node in tree.nodes.items()}
        traffic = self._frequencies.tokens(base, half_lives)
        clocks = {path: self._frequencies.clock(base, path) for path in tree.nodes}
        return _Counted(clocks, half_lives, traffic)

    def _node(self, tree: Tree, node: rpb.Domain, counted: _Counted) -> dpb.DomainStats:
        table = tree.tables[node.path]
        num_flat = sum(sum(tree.tables[path].rows.num_entries) for path in path_to(node.path))
        tokens, trigram, bigram, unigram, computed = self._frequencies.lookups(
            tree.base.name, node.path
        )
        return dpb.DomainStats(
            domain=node,
            num_entries=table.rows.num_entries,
            size_bytes=sum(segment.size_bytes for segment in node.segments),
            flat_bytes=num_flat * (_KEY_BYTES + row_bytes(tree.base)),
            counted_tokens=counted_tokens(
                node.path, tree.tables, counted.clocks, counted.half_lives, counted.traffic
            ),
            lookups=dpb.Lookups(
                num_tokens=tokens, num_trigram=trigram, num_bigram=bigram, num_unigram=unigram,
                num_computed=computed,
            ),
            commit_time=_timestamp(table),
        )  # fmt: skip


async def _versions(transaction: Transaction, node: rpb.Domain) -> tuple[int, int]:
    """How many versions read a node, and the bytes of their own blobs."""
    names = await transaction.names(versions_of_domain(node.base, node.path))
    await transaction.load(VERSIONS, names)
    versions = [await transaction.get(VERSIONS, name) for name in names]
    return len(names), sum(version.size_bytes for version in versions if version is not None)


def _timestamp(table: Table) -> Timestamp | None:
    if not table.commit_time_s:
        return None
    at = Timestamp()
    at.FromNanoseconds(int(table.commit_time_s * 1e9))
    return at
