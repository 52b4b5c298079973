"""New versions, many in one transaction.

Knows numbers, quotas and repeats; does not know what a version's blob holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import (
    FailedPrecondition,
    HmiError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from services.common.ids import check_name, check_sha256
from services.knowledge_store.metadata.bases import BlobSizes
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import (
    BASES,
    DOMAINS,
    MODELS,
    TENANTS,
    VERSIONS,
    domain_name,
    model_name,
    models_of,
)
from services.knowledge_store.metadata.models import redirect
from services.knowledge_store.metadata.tenants import (
    check_request_id,
    existing_tenant,
    timestamp,
)
from services.knowledge_store.metadata.transaction import Transaction

MAX_VERSIONS = 1_000


class Versions:
    """Adds versions."""

    def __init__(
        self,
        database: Database,
        blob_sizes: BlobSizes,
        *,
        max_models: int,
        request_id_ttl_s: int,
    ) -> None:
        self._database = database
        self._blob_sizes = blob_sizes
        self._max_models = max_models
        self._request_id_ttl_s = request_id_ttl_s

    async def create(self, wanted: Sequence[pb.NewVersion]) -> list[rpb.Version | HmiError]:
        """Add versions in one transaction; each gets its version or its error, in their order.

        Raises:
            InvalidArgument: Too many.
        """
        if len(wanted) > MAX_VERSIONS:
            raise InvalidArgument("versions", f"at most {MAX_VERSIONS}, not {len(wanted)}")

        async def create(transaction: Transaction) -> list[rpb.Version | HmiError]:
            batch = await self._load(transaction, wanted)
            outcomes: list[rpb.Version | HmiError] = []
            for new in wanted:
                try:
                    outcomes.append(await batch.add(new))
                except HmiError as error:
                    outcomes.append(error)
            return outcomes

        return await self._database.change(create)

    async def _load(self, transaction: Transaction, wanted: Sequence[pb.NewVersion]) -> _Batch:
        """Read in a few round trips all that the batch asks for."""
        versions = [new.version for new in wanted]
        tenants = {version.tenant for version in versions}
        models = {model_name(version.tenant, version.model) for version in versions}
        await transaction.load(TENANTS, tenants)
        await transaction.load(BASES, {version.base for version in versions})
        await transaction.load(MODELS, models)
        requests = [await _request_key(transaction, new) for new in wanted if new.request_id]
        return _Batch(
            transaction,
            # Under the transaction's lock, where no blob is collected.
            blob_sizes=await self._blob_sizes(
                {version.digest for version in versions if _is_sha256(version.digest)}
            ),
            last_versions=await transaction.last_versions(models),
            num_models={name: await transaction.count(models_of(name)) for name in tenants},
            made=await transaction.recall(requests),
            max_models=self._max_models,
            request_id_ttl_s=self._request_id_ttl_s,
        )


@dataclass
class _Batch:
    """What the versions of one transaction are checked against; grows with each that is added."""

    transaction: Transaction
    blob_sizes: dict[str, int]
    last_versions: dict[str, int]
    num_models: dict[str, int]
    made: dict[str, bytes]
    max_models: int
    request_id_ttl_s: int

    async def add(self, new: pb.NewVersion) -> rpb.Version:
        """Add one version, or answer with the one its request_id made."""
        _check(new)
        tenant = await existing_tenant(self.transaction, new.version.tenant)
        request_key = await _request_key(self.transaction, new)
        if request_key in self.made:
            return _repeated(self.made[request_key], new)
        table_version = await self._checked_table(new.version)
        size_bytes = self._checked_size(new.version)
        model = await self._model(tenant, new.version.model)

        version = rpb.Version()
        version.CopyFrom(new.version)
        version.size_bytes = size_bytes
        version.number = model.last_version = model.last_version + 1
        version.table_version = table_version
        version.create_time.CopyFrom(timestamp())
        if not new.no_activate:
            redirect(model, [rpb.TrafficTarget(version=version.number, percent=100)])
        self.transaction.put(MODELS, model)
        self.transaction.put(VERSIONS, version)
        if new.request_id:
            data = self.made[request_key] = version.SerializeToString()
            self.transaction.remember(request_key, data, ttl_s=self.request_id_ttl_s)
        return version

    async def _checked_table(self, version: rpb.Version) -> str:
        """The table version that a version of this base and domain begins with; "" if the base is
        not split."""
        base = await self.transaction.get(BASES, version.base)
        if base is None:
            raise NotFound(f"there is no base {version.base}", reason="BASE_NOT_FOUND")
        if base.digest != version.base_digest:
            raise FailedPrecondition(
                f"base {version.base} has digest {base.digest}", reason="BASE_DIFFERS"
            )
        if not base.HasField("split"):
            if version.domain or version.follow:
                raise InvalidArgument("version.domain", f"base {version.base} is not split")
            return ""
        domain = await self.transaction.get(DOMAINS, domain_name(base.name, version.domain))
        if domain is None or domain.tenant not in ("", version.tenant):
            raise NotFound(
                f"base {base.name} has no domain {version.domain!r}", reason="DOMAIN_NOT_FOUND"
            )
        if not domain.table_version:
            raise FailedPrecondition(
                f"the first table of domain {version.domain!r} is still being made: retry",
                reason="DOMAIN_NOT_READY",
            )
        return domain.table_version

    def _checked_size(self, version: rpb.Version) -> int:
        size_bytes = self.blob_sizes.get(version.digest)
        if size_bytes is None:
            raise FailedPrecondition(
                f"there is no blob {version.digest}: write it first", reason="BLOB_MISSING"
            )
        if version.size_bytes not in (0, size_bytes):
            raise InvalidArgument("version.size_bytes", f"the blob has {size_bytes} bytes")
        return size_bytes

    async def _model(self, tenant: rpb.Tenant, name: str) -> rpb.Model:
        """The model, or a new one within the quota."""
        full_name = model_name(tenant.name, name)
        model = await self.transaction.get(MODELS, full_name)
        if model is not None:
            return model
        max_models = tenant.quota.max_models or self.max_models
        if self.num_models[tenant.name] >= max_models:
            raise ResourceExhausted(
                f"tenant {tenant.name} may have {max_models} models",
                subject=f"tenant:{tenant.name}/max_models",
                reason="MODEL_QUOTA",
            )
        self.num_models[tenant.name] += 1
        return rpb.Model(
            tenant=tenant.name,
            name=name,
            last_version=self.last_versions[full_name],
            create_time=timestamp(),
        )


async def _request_key(transaction: Transaction, new: pb.NewVersion) -> str:
    """Where a request_id is remembered: forgotten with the tenant, even if its name returns."""
    tenant = await transaction.get(TENANTS, new.version.tenant)
    born = tenant.create_time.ToNanoseconds() if tenant is not None else 0
    return f"hmi:request:version:{new.version.tenant}:{born}:{new.request_id}"


def _repeated(data: bytes, new: pb.NewVersion) -> rpb.Version:
    version = rpb.Version()
    version.ParseFromString(data)
    if (version.model, version.digest) != (new.version.model, new.version.digest):
        raise InvalidArgument("request_id", "was used for another version")
    return version


def _check(new: pb.NewVersion) -> None:
    check_name("version.tenant", new.version.tenant)
    check_name("version.model", new.version.model)
    check_sha256("version.digest", new.version.digest)
    check_request_id("request_id", new.request_id)


def _is_sha256(value: str) -> bool:
    try:
        check_sha256("digest", value)
    except InvalidArgument:
        return False
    return True
