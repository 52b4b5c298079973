"""What a plan was made from, and what it excludes: updates that share no node go on side by side.

Knows a tree as it was read; does not know what is planned.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.errors import FailedPrecondition
from services.common.ids import domain_label
from services.knowledge_store.domains.drafts import Draft
from services.knowledge_store.domains.manifests import path_to
from services.knowledge_store.domains.records import Table, Update
from services.knowledge_store.domains.tables import is_below


@dataclass(frozen=True)
class Facts:
    """A tree as one transaction saw it, and who shares counts."""

    base: rpb.Base
    nodes: Mapping[str, rpb.Domain]
    tables: Mapping[str, Table]
    updates: Sequence[Update]
    sharing: frozenset[str]

    def marks(self, paths: Iterable[str]) -> dict[str, tuple[int, str, int]]:
        """What a plan of these nodes depends on: table_number, encoder and birth of each and of
        those above it."""
        above = {one for path in paths for one in path_to(path)}
        return {path: _mark(node) for path, node in self.nodes.items() if path in above}

    def is_ready(self, path: str) -> bool:
        """Whether a node and all above it are past their first updates."""
        return all(self.tables[above].is_ready for above in path_to(path))

    def scope(self, path: str, *, with_frozen: bool) -> set[str]:
        """Nodes that an update of `path` changes: those that are ready, of it and below it."""
        return {
            other
            for other, node in self.nodes.items()
            if (other == path or is_below(other, path))
            and self.is_ready(other)
            and (with_frozen or not node.is_frozen)
        }

    def keys_blob(self, path: str) -> str:
        """Blob of the keys a node has, or will have once its update is committed."""
        for update in self.updates:
            for node in update.nodes:
                if node.path == path:
                    return node.keys_sha256
        return self.tables[path].rows.keys_sha256


def left_of(draft: Draft, there: Collection[str]) -> Draft:
    """A draft without the nodes that are gone since: whoever deletes one keeps nobody waiting."""
    parts = tuple(part for part in draft.update.nodes if part.path in there)
    work = tuple(piece for piece in draft.work if piece.path in there)
    return replace(draft, update=draft.update.model_copy(update={"nodes": parts}), work=work)


def check_idle(updates: Sequence[Update], paths: Collection[str]) -> None:
    """Refuse to change nodes that are being changed.

    Raises:
        FailedPrecondition: An update of one of them is being worked on.
    """
    for update in updates:
        for part in update.nodes:
            if part.path in paths:
                raise FailedPrecondition(
                    f"update {update.update_id} of {domain_label(part.path)} is being worked on: "
                    "wait until it is committed",
                    reason="UPDATE_RUNNING",
                )


def _mark(node: rpb.Domain) -> tuple[int, str, int]:
    return node.table_number, node.encoder_sha256, node.create_time.ToNanoseconds()
