"""What a tree's nodes hold and do.

Knows where each number comes from; changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
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
from services.knowledge_store.metadata.kinds import version_bytes_of_domain, versions_of_domain
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

        async def read(transaction: Transaction) -> tuple[Tree, list[int], list[int]]:
            tree = await Tree.load(transaction, base_name)
            nums = [await transaction.count(versions_of_domain(base_name, p)) for p in tree.nodes]
            sizes = [version_bytes_of_domain(base_name, path) for path in tree.nodes]
            return tree, nums, await transaction.sums(sizes)

        tree, nums, sizes = await self._database.read(read)
        return await asyncio.to_thread(self._described, tree, nums, sizes)

    def _described(
        self, tree: Tree, nums: Sequence[int], sizes: Sequence[int]
    ) -> list[dpb.DomainStats]:
        counted = self._counted(tree)
        stats = [self._node(tree, node, counted) for node in tree.nodes.values()]
        for one, num_versions, size_bytes in zip(stats, nums, sizes, strict=True):
            one.num_versions, one.version_bytes = num_versions, size_bytes
        return stats

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


def _timestamp(table: Table) -> Timestamp | None:
    if not table.commit_time_s:
        return None
    at = Timestamp()
    at.FromNanoseconds(int(table.commit_time_s * 1e9))
    return at
