"""How each kind of resource lies in Redis, and how it is named in a Change.

Knows keys and fields; does not know what a change means.

    hmi:revision               the latest revision
    hmi:log                    stream; the entry REVISION-0 holds that revision's WatchResponse
    hmi:tenants, hmi:keys …    hash a kind: name -> protobuf bytes
    hmi:of:…                   set of the names of what belongs to something, kept with the hashes
    hmi:sums                   hash: totals over what belongs to something, kept with the hashes
    hmi:last_versions          hash: deleted model -> highest version number it gave out
    hmi:request:…              what a request_id made; expires
    hmi:domain_tables, hmi:domain_updates, hmi:domain_work
                               hash a kind: name -> JSON; the store's own, not in any Change
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb

REVISION = "hmi:revision"
LOG = "hmi:log"
LOG_FIELD = b"c"
LAST_VERSIONS = "hmi:last_versions"
SUMS = "hmi:sums"
DOMAIN_TABLES = "hmi:domain_tables"
DOMAIN_UPDATES = "hmi:domain_updates"
DOMAIN_WORK = "hmi:domain_work"

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class Kind(Generic[M]):
    """One kind of resource.

    Attributes:
        hash_key: The Redis hash that holds it.
        message: Its protobuf class.
        name: A resource's field in the hash.
        sets: The sets a resource's name is in as long as the resource is there.
        change: A Change to this state.
        bare: The resource with nothing but what names it.
        sums: What it adds to which totals as long as it is there; of kinds that never change.
    """

    hash_key: str
    message: type[M]
    name: Callable[[M], str]
    sets: Callable[[M], list[str]]
    change: Callable[[M], pb.Change]
    bare: Callable[[M], M]
    sums: Callable[[M], dict[str, int]] = lambda _: {}

    def parse(self, data: bytes) -> M:
        """The resource from its bytes."""
        message = self.message()
        message.ParseFromString(data)
        return message


def model_name(tenant: str, model: str) -> str:
    """A model's field; names hold no '/'."""
    return f"{tenant}/{model}"


def version_name(tenant: str, model: str, number: int) -> str:
    """A version's field."""
    return f"{tenant}/{model}/{number}"


def keys_of(tenant: str) -> str:
    """Set of the tenant's keys."""
    return f"hmi:of:tenant-keys:{tenant}"


def models_of(tenant: str) -> str:
    """Set of the tenant's models."""
    return f"hmi:of:tenant-models:{tenant}"


def versions_of_model(tenant: str, model: str) -> str:
    """Set of the model's versions."""
    return f"hmi:of:model-versions:{tenant}/{model}"


def versions_of_base(base: str) -> str:
    """Set of the versions tied to a base."""
    return f"hmi:of:base-versions:{base}"


def domain_name(base: str, path: str) -> str:
    """A domain's field; the root's ends with the '/'."""
    return f"{base}/{path}"


def domains_of(base: str) -> str:
    """Set of a base's domains."""
    return f"hmi:of:base-domains:{base}"


def domains_of_tenant(tenant: str) -> str:
    """Set of a tenant's own domains; that of "" holds the shared ones."""
    return f"hmi:of:tenant-domains:{tenant}"


def versions_of_domain(base: str, path: str) -> str:
    """Set of the versions that read a domain's tables."""
    return f"hmi:of:domain-versions:{domain_name(base, path)}"


def version_bytes_of_domain(base: str, path: str) -> str:
    """Total of the bytes of the versions that read a domain's tables."""
    return f"domain-version-bytes:{domain_name(base, path)}"


def _version_sets(version: rpb.Version) -> list[str]:
    sets = [versions_of_model(version.tenant, version.model), versions_of_base(version.base)]
    if version.table_version:
        sets.append(versions_of_domain(version.base, version.domain))
    return sets


def _version_sums(version: rpb.Version) -> dict[str, int]:
    if not version.table_version:
        return {}
    return {version_bytes_of_domain(version.base, version.domain): version.size_bytes}


def _bare_key(key: pb.Key) -> pb.Key:
    api_key = rpb.ApiKey(key_id=key.api_key.key_id, tenant=key.api_key.tenant)
    return pb.Key(api_key=api_key)


TENANTS = Kind(
    "hmi:tenants",
    rpb.Tenant,
    name=lambda tenant: tenant.name,
    sets=lambda _: [],
    change=lambda tenant: pb.Change(tenant=tenant),
    bare=lambda tenant: rpb.Tenant(name=tenant.name),
)
KEYS = Kind(
    "hmi:keys",
    pb.Key,
    name=lambda key: key.api_key.key_id,
    sets=lambda key: [keys_of(key.api_key.tenant)],
    change=lambda key: pb.Change(key=key),
    bare=_bare_key,
)
BASES = Kind(
    "hmi:bases",
    rpb.Base,
    name=lambda base: base.name,
    sets=lambda _: [],
    change=lambda base: pb.Change(base=base),
    bare=lambda base: rpb.Base(name=base.name),
)
DOMAINS = Kind(
    "hmi:domains",
    rpb.Domain,
    name=lambda domain: domain_name(domain.base, domain.path),
    sets=lambda domain: [domains_of(domain.base), domains_of_tenant(domain.tenant)],
    change=lambda domain: pb.Change(domain=domain),
    bare=lambda domain: rpb.Domain(base=domain.base, path=domain.path),
)
MODELS = Kind(
    "hmi:models",
    rpb.Model,
    name=lambda model: model_name(model.tenant, model.name),
    sets=lambda model: [models_of(model.tenant)],
    change=lambda model: pb.Change(model=model),
    bare=lambda model: rpb.Model(tenant=model.tenant, name=model.name),
)
VERSIONS = Kind(
    "hmi:versions",
    rpb.Version,
    name=lambda version: version_name(version.tenant, version.model, version.number),
    sets=_version_sets,
    change=lambda version: pb.Change(version=version),
    bare=lambda version: rpb.Version(
        tenant=version.tenant, model=version.model, number=version.number
    ),
    sums=_version_sums,
)
MEMBERS = Kind(
    "hmi:members",
    pb.Member,
    name=lambda member: member.member_id,
    sets=lambda _: [],
    change=lambda member: pb.Change(member=member),
    bare=lambda member: pb.Member(member_id=member.member_id, kind=member.kind),
)

# In the order of a snapshot: what others refer to comes first.
ALL_KINDS: tuple[Kind[Message], ...] = (
    TENANTS, KEYS, BASES, DOMAINS, MODELS, VERSIONS, MEMBERS,  # type: ignore[assignment]
)  # fmt: skip
