"""What administration speaks about, as frozen values.

Protobuf stops here: `from_pb` reads the wire's messages, `to_pb` writes them; nothing else of the
client sees one.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from hmi.admin.v1 import resources_pb2, tenant_pb2
from hmi.client.domain_resources import Split
from hmi.client.messages import build, enum_from_pb, to_datetime
from hmi.errors import HmiError


class Role(Enum):
    """What a key may do."""

    UNSPECIFIED = "unspecified"
    TENANT = "tenant"
    ADMIN = "admin"

    def to_pb(self) -> resources_pb2.Role.ValueType:
        return resources_pb2.Role.Value(f"ROLE_{self.name}")

    @classmethod
    def from_pb(cls, value: resources_pb2.Role.ValueType) -> Role:
        return enum_from_pb(cls, resources_pb2.Role.DESCRIPTOR, value)


class Task(Enum):
    """What a model's head does."""

    UNSPECIFIED = "unspecified"
    SEQUENCE_CLASSIFICATION = "sequence_classification"
    MULTI_LABEL_CLASSIFICATION = "multi_label_classification"
    REGRESSION = "regression"
    TOKEN_CLASSIFICATION = "token_classification"  # noqa: S105 — a task, no password
    EMBEDDING = "embedding"

    @classmethod
    def from_pb(cls, value: resources_pb2.Task.ValueType) -> Task:
        return enum_from_pb(cls, resources_pb2.Task.DESCRIPTOR, value)


@dataclass(frozen=True, slots=True)
class Quota:
    """Bounds of what a tenant may use; 0 means the deployment's default."""

    requests_per_second: float = 0.0
    tokens_per_second: float = 0.0
    max_queued_items: int = 0
    max_models: int = 0

    def to_pb(self) -> resources_pb2.Quota:
        return build(
            resources_pb2.Quota,
            requests_per_second=self.requests_per_second,
            tokens_per_second=self.tokens_per_second,
            max_queued_items=self.max_queued_items,
            max_models=self.max_models,
        )

    @classmethod
    def from_pb(cls, message: resources_pb2.Quota) -> Quota:
        return cls(
            message.requests_per_second,
            message.tokens_per_second,
            message.max_queued_items,
            message.max_models,
        )


@dataclass(frozen=True, slots=True)
class Tenant:
    """A customer."""

    name: str
    weight: float
    """Share of the accelerator relative to other tenants'."""
    quota: Quota
    create_time: datetime
    shares_counts: bool
    """Its traffic's n-gram counts may shape tables that others share."""

    @classmethod
    def from_pb(cls, message: resources_pb2.Tenant) -> Tenant:
        return cls(
            message.name,
            message.weight,
            Quota.from_pb(message.quota),
            to_datetime(message.create_time),
            message.shares_counts,
        )


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A credential, without its secret."""

    key_id: str
    tenant: str
    """Empty for an admin key."""
    role: Role
    create_time: datetime
    revoke_time: datetime | None

    @classmethod
    def from_pb(cls, message: resources_pb2.ApiKey) -> ApiKey:
        revoked = to_datetime(message.revoke_time) if message.HasField("revoke_time") else None
        return cls(
            message.key_id,
            message.tenant,
            Role.from_pb(message.role),
            to_datetime(message.create_time),
            revoked,
        )


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A new key with its secret, which is shown this once."""

    api_key: ApiKey
    secret: str

    @classmethod
    def from_pb(cls, message: tenant_pb2.CreateApiKeyResponse) -> CreatedKey:
        return cls(ApiKey.from_pb(message.api_key), message.secret)


@dataclass(frozen=True, slots=True)
class CreatedTenant:
    """A new tenant with its first key.

    `key` is None if the tenant had been made by an earlier try whose answer was lost: make another
    key for it.
    """

    tenant: Tenant
    key: CreatedKey | None

    @classmethod
    def from_pb(cls, message: tenant_pb2.CreateTenantResponse) -> CreatedTenant:
        key = None
        if message.secret:
            key = CreatedKey(ApiKey.from_pb(message.api_key), message.secret)
        return cls(Tenant.from_pb(message.tenant), key)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a tenant has used on a gateway since it started; a retried item counts once."""

    num_items: int
    num_tokens: int
    num_errors: int
    num_queued: int

    @classmethod
    def from_pb(cls, message: tenant_pb2.GetUsageResponse) -> Usage:
        return cls(message.num_items, message.num_tokens, message.num_errors, message.num_queued)


@dataclass(frozen=True, slots=True)
class BaseFile:
    """One file of a base."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Base:
    """A frozen checkpoint that models share."""

    name: str
    digest: str
    files: tuple[BaseFile, ...]
    architecture: str
    hidden_size: int
    num_layers: int
    max_tokens: int
    tokenizer_digest: str
    create_time: datetime
    split: Split | None
    """Set if its lower layers are looked up in tables."""

    @classmethod
    def from_pb(cls, message: resources_pb2.Base) -> Base:
        return cls(
            message.name,
            message.digest,
            tuple(BaseFile(f.name, f.sha256, f.size_bytes) for f in message.files),
            message.architecture,
            message.hidden_size,
            message.num_layers,
            message.max_tokens,
            message.tokenizer_digest,
            to_datetime(message.create_time),
            Split.from_pb(message.split) if message.HasField("split") else None,
        )


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable upload of a model."""

    tenant: str
    model: str
    number: int
    digest: str
    size_bytes: int
    base: str
    base_digest: str
    task: Task
    labels: tuple[str, ...]
    adapter_type: str
    create_time: datetime
    domain: str
    """Path of the domain whose tables it reads (split bases); empty: the root's."""
    follow: bool
    """It reads the domain's latest tables, not those of `table_version`."""
    table_version: str

    @classmethod
    def from_pb(cls, message: resources_pb2.Version) -> Version:
        return cls(
            message.tenant,
            message.model,
            message.number,
            message.digest,
            message.size_bytes,
            message.base,
            message.base_digest,
            Task.from_pb(message.task),
            tuple(message.labels),
            message.adapter_type,
            to_datetime(message.create_time),
            message.domain,
            message.follow,
            message.table_version,
        )


@dataclass(frozen=True, slots=True)
class Model:
    """A tenant's named model. Traffic maps a version's number to its percent of the requests."""

    tenant: str
    name: str
    traffic: dict[int, int]
    previous_traffic: dict[int, int]
    last_version: int
    pinned: bool
    create_time: datetime

    @classmethod
    def from_pb(cls, message: resources_pb2.Model) -> Model:
        return cls(
            message.tenant,
            message.name,
            {target.version: target.percent for target in message.traffic},
            {target.version: target.percent for target in message.previous_traffic},
            message.last_version,
            message.pinned,
            to_datetime(message.create_time),
        )


@dataclass(frozen=True, slots=True)
class PushOutcome:
    """What became of one upload of many: a version, or the error that stands in for it."""

    position: int
    version: Version | None
    error: HmiError | None
