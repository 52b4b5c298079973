"""The knowledge store's metadata, in memory: tenants, keys, bases, domains, models, versions.

Applies what `Watch` sends and answers lookups; does not know how the messages came. What it holds
outlives the store being down: models and bases for as long as it takes (they are immutable or
harmless), keys until `max_staleness_s` after the store was last heard.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import FailedPrecondition, NotFound
from services.common.ids import domain_label, is_name
from services.gateway.domain import Base, Version
from services.gateway.state import Model, State

logger = logging.getLogger(__name__)


class Mirror:
    """The latest complete copy, and the wish to be told of changes.

    Args:
        now: A monotonic clock, in seconds.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._next: State | None = None
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self._listeners: list[Callable[[], None]] = []
        self.state = State()
        self.revision = 0
        self.heard_at: float | None = None

    @property
    def is_ready(self) -> bool:
        """A complete snapshot has come."""
        return self.heard_at is not None

    @property
    def staleness_s(self) -> float:
        """Seconds since the store was last heard; infinite if it never was."""
        return float("inf") if self.heard_at is None else self._now() - self.heard_at

    def apply(self, response: pb.WatchResponse) -> None:
        """Take over one message of Watch. A snapshot replaces everything, once it is complete."""
        if response.is_snapshot:
            self._next = self._next or State()
            self._next.apply(response.changes)
            if not response.is_snapshot_end:
                return
            self.state, self._next = self._next, None
        else:
            self.state.apply(response.changes)
        self.revision = response.revision or self.revision
        self.heard_at = self._now()
        if response.changes or response.is_snapshot:
            self._tell()

    def interrupted(self) -> None:
        """The stream ended; a snapshot that was on its way is dropped."""
        self._next = None

    async def ready(self) -> None:
        """Wait for the first complete snapshot, however long the store takes."""
        while not await self.until(lambda: self.is_ready, timeout_s=60.0):
            logger.warning("still waiting for the knowledge store's first snapshot")

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change."""
        self._listeners.append(listener)

    async def until(self, predicate: Callable[[], bool], timeout_s: float = 2.0) -> bool:
        """Wait until the copy satisfies `predicate`: what was just written is then seen here too.

        Returns False after `timeout_s`: the write is durable all the same, only this copy is late.
        """
        if predicate():
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = predicate
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            logger.warning("the store's change did not come back in time")
            return False
        finally:
            self._waiting.pop(future, None)
        return True

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
        for future, predicate in list(self._waiting.items()):
            if not future.done() and predicate():
                future.set_result(None)

    def model(self, tenant: str, name: str) -> Model:
        """A tenant's model.

        Raises:
            NotFound: There is none; another tenant's is none.
        """
        if not is_name(name):
            raise NotFound("there is no model of that name", reason="MODEL_NOT_FOUND")
        model = self.state.models.get(tenant, {}).get(name)
        if model is None or model.pb is None:
            raise NotFound(f"there is no model '{name}'", reason="MODEL_NOT_FOUND")
        return model

    def version(self, tenant: str, name: str, number: int) -> Version:
        """The version a request is answered by; `number` 0 lets the traffic split choose.

        Raises:
            NotFound: No such model or version.
            FailedPrecondition: The model has no active version.
        """
        model = self.model(tenant, name)
        chosen = number or model.choose()
        if chosen is None:
            raise FailedPrecondition(
                f"model '{name}' has no active version: activate one", reason="NO_ACTIVE_VERSION"
            )
        version = model.versions.get(chosen)
        if version is None:
            raise NotFound(f"model '{name}' has no version {chosen}", reason="VERSION_NOT_FOUND")
        return self._reading(version) if version.pb.follow else version

    def _reading(self, version: Version) -> Version:
        """A version that follows its domain, with the tables the domain has now."""
        domain = self.domain(version.pb.tenant, version.pb.base, version.pb.domain)
        return version.reading(current_table(domain))

    def domain(self, tenant: str, base: str, path: str) -> resources_pb2.Domain:
        """A node that a tenant sees: a shared one, or its own. An empty `tenant` sees all.

        Raises:
            NotFound: There is none; another tenant's is none.
        """
        domain = self.state.domains.get(base, {}).get(path)
        if domain is None or (tenant and domain.tenant not in ("", tenant)):
            where = f"'{path}'" if path else "at the root"
            raise NotFound(
                f"base '{base}' has no domain {where}: see `hmi domains tree`",
                reason="DOMAIN_NOT_FOUND",
            )
        return domain

    def base_of(self, version: Version) -> Base:
        """The base a version is tied to.

        Raises:
            FailedPrecondition: It was deleted.
        """
        base = self.state.bases_by_digest.get(version.base_digest)
        if base is None:
            raise FailedPrecondition(
                f"base '{version.pb.base}' of this version is gone", reason="BASE_NOT_FOUND"
            )
        return base

    def owns_blob(self, tenant: str, digest: str) -> bool:
        """Whether one of the tenant's versions has this digest."""
        models = self.state.models.get(tenant, {}).values()
        return any(v.digest == digest for model in models for v in model.versions.values())

    def num_gateways(self) -> int:
        """Gateways registered now, at least 1."""
        kind = pb.MEMBER_KIND_GATEWAY
        return max(1, sum(member.kind == kind for member in self.state.members.values()))

    def executors(self) -> list[pb.Member]:
        """Executors registered now."""
        kind = pb.MEMBER_KIND_EXECUTOR
        return [member for member in self.state.members.values() if member.kind == kind]


def current_table(domain: resources_pb2.Domain) -> str:
    """The table version of a node's whole path.

    Raises:
        FailedPrecondition: Its first table is not there yet.
    """
    if not domain.table_version:
        raise FailedPrecondition(
            f"the first table of {domain_label(domain.path)} is not there yet: wait for it "
            "(`hmi domains tree`)",
            reason="NO_TABLE",
        )
    return domain.table_version
