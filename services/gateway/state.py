"""One copy of the knowledge store's metadata, by name: tenants, keys, bases, domains, models.

Takes over changes one by one; does not know how they came, nor how old they are.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
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
    domains: dict[str, dict[str, resources_pb2.Domain]] = field(default_factory=dict)
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
        if is_deleted:
            self.domains.pop(base.name, None)
        else:
            self.bases[base.name] = self.bases_by_digest[base.digest] = Base(base)

    def _apply_domain(self, domain: resources_pb2.Domain, is_deleted: bool) -> None:
        tree = self.domains.setdefault(domain.base, {})
        if is_deleted:
            tree.pop(domain.path, None)
        else:
            tree[domain.path] = domain

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
