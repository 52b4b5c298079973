"""The knowledge store's metadata, in memory: tenants, keys, bases, models, versions, members.

Applies what `Watch` sends and answers lookups; does not know how the messages came. What it holds
outlives the store being down: models and bases for as long as it takes (they are immutable or
harmless), keys until `max_staleness_s` after the store was last heard.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import FailedPrecondition, NotFound
from services.common.ids import is_name
from services.gateway.domain import Base, Version

logger = logging.getLogger(__name__)

# Coprime to 100: a model's requests meet every percent exactly once in a hundred, well spread.
_PERCENT_STRIDE = 61


@dataclass(slots=True, eq=False)
class Model:
    """A model with its versions. A version may come before its model; `pb` is None until then."""

    pb: resources_pb2.Model | None = None
    versions: dict[int, Version] = field(default_factory=dict)
    _requests: Iterator[int] = field(default_factory=itertools.count)

    def choose(self) -> int | None:
        """Number of the version for the next request by the traffic split.

        None if none is active.
        """
        traffic = list(self.pb.traffic) if self.pb else []
        if len(traffic) == 1:
            return traffic[0].version
        left = (next(self._requests) * _PERCENT_STRIDE) % 100
        for target in traffic:
            left -= target.percent
            if left < 0:
                return target.version
        return None

    def most_traffic(self) -> int:
        """Number of the version with the most traffic; 0 if none is active."""
        traffic = list(self.pb.traffic) if self.pb else []
        return max(traffic, key=lambda target: target.percent).version if traffic else 0


@dataclass(slots=True)
class State:
    """One consistent copy."""

    tenants: dict[str, resources_pb2.Tenant] = field(default_factory=dict)
    keys: dict[str, pb.Key] = field(default_factory=dict)
    keys_by_hash: dict[bytes, resources_pb2.ApiKey] = field(default_factory=dict)
    bases: dict[str, Base] = field(default_factory=dict)
    bases_by_digest: dict[str, Base] = field(default_factory=dict)
    models: dict[str, dict[str, Model]] = field(default_factory=dict)
    members: dict[str, pb.Member] = field(default_factory=dict)

    def apply(self, changes: Iterable[pb.Change]) -> None:
        """Take over changes, in order."""
        for change in changes:
            kind = change.WhichOneof("resource")
            if kind is None:
                logger.warning("a change without a resource this gateway knows was passed over")
                continue
            getattr(self, f"_apply_{kind}")(getattr(change, kind), change.is_deleted)

    def _apply_tenant(self, tenant: resources_pb2.Tenant, is_deleted: bool) -> None:
        if not is_deleted:
            self.tenants[tenant.name] = tenant
            return
        self.tenants.pop(tenant.name, None)
        self.models.pop(tenant.name, None)
        for key in [k for k in self.keys.values() if k.api_key.tenant == tenant.name]:
            self._apply_key(key, True)

    def _apply_key(self, key: pb.Key, is_deleted: bool) -> None:
        key_id = key.api_key.key_id
        before = self.keys.pop(key_id, None)
        if before is not None:
            self.keys_by_hash.pop(before.secret_sha256, None)
        if not is_deleted:
            self.keys[key_id] = key
            if not key.api_key.HasField("revoke_time"):
                self.keys_by_hash[key.secret_sha256] = key.api_key

    def _apply_base(self, base: resources_pb2.Base, is_deleted: bool) -> None:
        before = self.bases.pop(base.name, None)
        if before is not None:
            self.bases_by_digest.pop(before.digest, None)
        if not is_deleted:
            self.bases[base.name] = self.bases_by_digest[base.digest] = Base(base)

    def _apply_model(self, model: resources_pb2.Model, is_deleted: bool) -> None:
        if is_deleted:
            self.models.get(model.tenant, {}).pop(model.name, None)
        else:
            self._model(model.tenant, model.name).pb = model

    def _apply_version(self, version: resources_pb2.Version, is_deleted: bool) -> None:
        if not is_deleted:
            model = self._model(version.tenant, version.model)
            model.versions[version.number] = Version.from_pb(version)
        elif known := self.models.get(version.tenant, {}).get(version.model):
            known.versions.pop(version.number, None)

    def _apply_member(self, member: pb.Member, is_deleted: bool) -> None:
        if is_deleted:
            self.members.pop(member.member_id, None)
        else:
            self.members[member.member_id] = member

    def _model(self, tenant: str, name: str) -> Model:
        models = self.models.setdefault(tenant, {})
        if name not in models:
            models[name] = Model()
        return models[name]


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
        return version

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
