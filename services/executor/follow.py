"""What an executor sees of the store: bases, pinned models, new tables, what is deleted.

Knows the store's changes; does not know how they come, and loads nothing.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.executor.engine.items import ModelKey


class Swap(NamedTuple):
    """A domain's new table version, after an old one; both in hex."""

    base: str
    old_version: str
    new_version: str


class View:
    """What an executor needs to know of the store's resources."""

    def __init__(self) -> None:
        self.bases: dict[str, resources_pb2.Base] = {}  # by name
        self._pinned: dict[tuple[str, str], list[int]] = {}  # numbers of a model's versions
        self._digests: dict[tuple[str, str, int], tuple[str, str]] = {}  # version, base
        self._deleted: list[ModelKey] = []
        self._table_versions: dict[tuple[str, str], str] = {}  # by base and path
        self._swaps: list[Swap] = []

    def apply(self, change: pb.Change) -> None:
        """Take in one change."""
        match change.WhichOneof("resource"):
            case "base":
                self._apply_base(change.base, change.is_deleted)
            case "model":
                self._apply_model(change.model, change.is_deleted)
            case "version":
                self._apply_version(change.version, change.is_deleted)
            case "domain":
                self._apply_domain(change.domain, change.is_deleted)

    @property
    def base_digests(self) -> frozenset[str]:
        """Digests of the bases there are."""
        return frozenset(base.digest for base in self.bases.values())

    @property
    def pins(self) -> frozenset[ModelKey]:
        """The versions of pinned models that get traffic."""
        keys = (
            (tenant, model, number)
            for (tenant, model), numbers in self._pinned.items()
            for number in numbers
        )
        return frozenset(
            ModelKey(*key, *self._digests[key]) for key in keys if key in self._digests
        )

    def succeed(self, old: View) -> None:
        """Take the place of an older view: what it had and this one has not was deleted unseen."""
        self._deleted += old._deleted
        self._deleted += [
            ModelKey(*key, *digests)
            for key, digests in old._digests.items()
            if self._digests.get(key) != digests
        ]
        self._swaps += old._swaps
        for (base, path), version in self._table_versions.items():
            self._note_swap(base, old._table_versions.get((base, path), ""), version)

    def take_deleted(self) -> list[ModelKey]:
        """Versions deleted since the last call."""
        deleted, self._deleted = self._deleted, []
        return deleted

    def take_swaps(self) -> list[Swap]:
        """Tables that took others' place since the last call, in their order."""
        swaps, self._swaps = self._swaps, []
        return swaps

    def _apply_domain(self, domain: resources_pb2.Domain, is_deleted: bool) -> None:
        key = (domain.base, domain.path)
        old = self._table_versions.pop(key, "")
        if not is_deleted:
            self._note_swap(domain.base, old, domain.table_version)
            self._table_versions[key] = domain.table_version

    def _note_swap(self, base: str, old: str, new: str) -> None:
        if old and new and old != new:
            self._swaps.append(Swap(base, old, new))

    def _apply_base(self, base: resources_pb2.Base, is_deleted: bool) -> None:
        if is_deleted:
            self.bases.pop(base.name, None)
        else:
            self.bases[base.name] = base

    def _apply_model(self, model: resources_pb2.Model, is_deleted: bool) -> None:
        key = (model.tenant, model.name)
        if model.pinned and not is_deleted:
            self._pinned[key] = [target.version for target in model.traffic]
        else:
            self._pinned.pop(key, None)

    def _apply_version(self, version: resources_pb2.Version, is_deleted: bool) -> None:
        key = (version.tenant, version.model, version.number)
        if is_deleted:
            digests = self._digests.pop(key, None)
            if digests is not None:
                self._deleted.append(ModelKey(*key, *digests))
        else:
            self._digests[key] = (version.digest, version.base_digest)


class Follower:
    """The view, kept up to date by `services.common.follow`.

    Attributes:
        view: The latest state. Empty until the first snapshot is complete.
        revision: That of the view.
        changed: Set at each change; the reader clears it.
    """

    def __init__(self) -> None:
        self._snapshot: View | None = None
        self.view = View()
        self.revision = 0
        self.changed = asyncio.Event()

    def apply(self, response: pb.WatchResponse) -> None:
        """Take over one message of Watch. A snapshot replaces the view once it is complete."""
        if response.is_snapshot and self._snapshot is None:
            self._snapshot = View()
        view = self.view if self._snapshot is None else self._snapshot
        for change in response.changes:
            view.apply(change)
        if self._snapshot is not None:
            if not response.is_snapshot_end:
                return
            self._snapshot.succeed(self.view)
            self.view, self._snapshot = self._snapshot, None
            self.changed.set()
        self.revision = response.revision or self.revision
        if response.changes:
            self.changed.set()

    def interrupted(self) -> None:
        """The stream ended; a snapshot that was on its way is dropped."""
        self._snapshot = None
