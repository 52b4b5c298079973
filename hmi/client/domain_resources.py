"""What domains and split bases are, as frozen values.

Protobuf stops here, as in `resources`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from hmi.admin.v1 import domain_pb2, resources_pb2
from hmi.client.messages import enum_from_pb, to_datetime


class Form(Enum):
    """What of an n-gram's outputs a table keeps."""

    UNSPECIFIED = "unspecified"
    CENTRE = "centre"
    SUM = "sum"

    @classmethod
    def from_pb(cls, value: resources_pb2.Form.ValueType) -> Form:
        return enum_from_pb(cls, resources_pb2.Form.DESCRIPTOR, value)


class MissPolicy(Enum):
    """What stands for an n-gram that no table of the path holds."""

    UNSPECIFIED = "unspecified"
    BACKOFF = "backoff"
    COMPUTE = "compute"

    def to_pb(self) -> resources_pb2.MissPolicy.ValueType:
        return resources_pb2.MissPolicy.Value(f"MISS_POLICY_{self.name}")

    @classmethod
    def from_pb(cls, value: resources_pb2.MissPolicy.ValueType) -> MissPolicy:
        return enum_from_pb(cls, resources_pb2.MissPolicy.DESCRIPTOR, value)


@dataclass(frozen=True, slots=True)
class Split:
    """Where a base's lower layers end, which are looked up instead of computed."""

    layer: int
    """Layers below this one are looked up."""
    form: Form
    unsplit_digest: str
    """Bases with one unsplit digest share their upper layers."""
    encoder_sha256: str

    @classmethod
    def from_pb(cls, message: resources_pb2.Split) -> Split:
        return cls(
            message.layer,
            Form.from_pb(message.form),
            message.unsplit_digest,
            message.encoder_sha256,
        )


class UpdateOutcome(Enum):
    """How an update ended."""

    UNSPECIFIED = "unspecified"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"

    @classmethod
    def from_pb(cls, value: resources_pb2.UpdateOutcome.ValueType) -> UpdateOutcome:
        return enum_from_pb(cls, resources_pb2.UpdateOutcome.DESCRIPTOR, value)


@dataclass(frozen=True, slots=True)
class EndedUpdate:
    """How an update of a domain ended."""

    update_id: str
    outcome: UpdateOutcome
    reason: str
    """Why it was rolled back."""
    end_time: datetime

    @classmethod
    def from_pb(cls, message: resources_pb2.EndedUpdate) -> EndedUpdate:
        return cls(
            message.update_id,
            UpdateOutcome.from_pb(message.outcome),
            message.reason,
            to_datetime(message.end_time),
        )


@dataclass(frozen=True, slots=True)
class Domain:
    """A node of a split base's tree of tables."""

    base: str
    path: str
    """Names joined by '/'; empty for the root."""
    tenant: str
    """The one tenant that sees it; empty: everyone."""
    miss_policy: MissPolicy
    encoder_sha256: str
    alpha: float
    """Share of its counted occurrences that its table is to cover; 0 is the default."""
    byte_budget: int
    half_life_tokens: int
    num_segments: int
    table_number: int
    """Counts the commits of its own rows, from 0: the empty table."""
    table_version: str
    """Version of the whole path's tables; empty until the first is there."""
    is_updating: bool
    is_frozen: bool
    create_time: datetime
    last_update: EndedUpdate | None
    """How its last update ended; None: none has."""

    @classmethod
    def from_pb(cls, message: resources_pb2.Domain) -> Domain:
        ended = message.HasField("last_update")
        return cls(
            base=message.base,
            path=message.path,
            tenant=message.tenant,
            miss_policy=MissPolicy.from_pb(message.miss_policy),
            encoder_sha256=message.encoder_sha256,
            alpha=message.alpha,
            byte_budget=message.byte_budget,
            half_life_tokens=message.half_life_tokens,
            num_segments=len(message.segments),
            table_number=message.table_number,
            table_version=message.table_version,
            is_updating=message.is_updating,
            is_frozen=message.is_frozen,
            create_time=to_datetime(message.create_time),
            last_update=EndedUpdate.from_pb(message.last_update) if ended else None,
        )


@dataclass(frozen=True, slots=True)
class Lookups:
    """How tokens were answered."""

    num_tokens: int
    num_trigram: int
    num_bigram: int
    num_unigram: int
    num_computed: int

    @classmethod
    def from_pb(cls, message: domain_pb2.Lookups) -> Lookups:
        return cls(
            message.num_tokens,
            message.num_trigram,
            message.num_bigram,
            message.num_unigram,
            message.num_computed,
        )


@dataclass(frozen=True, slots=True)
class DomainStats:
    """What a node holds and does. What only admins see is None to others: counts of traffic, and of
    a shared node's models.
    """

    domain: Domain
    num_entries: tuple[int, ...]
    """Rows of its own: unigrams, bigrams, trigrams."""
    size_bytes: int
    flat_bytes: int
    """What a flat table that answers the same lookups would take."""
    num_versions: int | None
    version_bytes: int | None
    """What its models' adapters and heads take together."""
    counted_tokens: float | None
    lookups: Lookups | None
    commit_time: datetime | None

    @classmethod
    def from_pb(cls, message: domain_pb2.DomainStats) -> DomainStats:
        seen = {field.name for field, _ in message.ListFields()}
        return cls(
            domain=Domain.from_pb(message.domain),
            num_entries=tuple(message.num_entries),
            size_bytes=message.size_bytes,
            flat_bytes=message.flat_bytes,
            num_versions=message.num_versions if "num_versions" in seen else None,
            version_bytes=message.version_bytes if "version_bytes" in seen else None,
            counted_tokens=message.counted_tokens if "counted_tokens" in seen else None,
            lookups=Lookups.from_pb(message.lookups) if "lookups" in seen else None,
            commit_time=to_datetime(message.commit_time) if "commit_time" in seen else None,
        )


@dataclass(frozen=True, slots=True)
class DomainChange:
    """What an update does to one node's rows of one order."""

    path: str
    order: int
    num_added: int
    num_promoted: int
    """Of those added: rows that move up from children."""
    num_removed: int
    num_deferred: int
    """Rows left for later updates: one may change only a share of a node's rows."""
    num_entries: int
    coverage_before: float
    coverage_after: float
    num_withheld: int
    """N-grams counted more than once that too few tenants sent for a shared table."""
    num_over_budget: int
    """Rows wanted that its byte budget does not pay for."""
    num_exempt: int
    """Of those added: rows that a corpus given by an admin holds, which no bound concerns."""
    num_wanted: int
    """Rows it should have in the end, within its budget."""

    @classmethod
    def from_pb(cls, message: domain_pb2.DomainChange) -> DomainChange:
        return cls(
            message.path,
            message.order,
            message.num_added,
            message.num_promoted,
            message.num_removed,
            message.num_deferred,
            message.num_entries,
            message.coverage_before,
            message.coverage_after,
            message.num_withheld,
            message.num_over_budget,
            message.num_exempt,
            message.num_wanted,
        )


@dataclass(frozen=True, slots=True)
class DomainUpdate:
    """An update that was begun, or with an empty `update_id` one that was only planned."""

    update_id: str
    changes: tuple[DomainChange, ...]

    @classmethod
    def from_pb(cls, message: domain_pb2.UpdateDomainsResponse) -> DomainUpdate:
        return cls(message.update_id, tuple(map(DomainChange.from_pb, message.changes)))
