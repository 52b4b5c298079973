"""The parts that keep domain trees, put together.

Knows what depends on what; does nothing itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.common.failpoints import Reach
from services.knowledge_store.blobs import BlobDirectory
from services.knowledge_store.config import StoreSettings
from services.knowledge_store.domains.key_blobs import KeyBlobs
from services.knowledge_store.domains.nodes import Domains
from services.knowledge_store.domains.observing import Observing
from services.knowledge_store.domains.options import DomainOptions
from services.knowledge_store.domains.planner import Planner
from services.knowledge_store.domains.repairs import Repairs
from services.knowledge_store.domains.roots import Roots
from services.knowledge_store.domains.statistics import Statistics
from services.knowledge_store.domains.updates import Updates
from services.knowledge_store.domains.work import Work
from services.knowledge_store.frequency import Frequencies
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.tree import ChangeRules


@dataclass(frozen=True)
class Forest:
    """All domain trees."""

    roots: Roots
    nodes: Domains
    work: Work
    updates: Updates
    observing: Observing
    statistics: Statistics

    @classmethod
    def build(
        cls,
        settings: StoreSettings,
        database: Database,
        blobs: BlobDirectory,
        frequencies: Frequencies,
        reach: Reach,
    ) -> Forest:
        """The parts on one database, blob directory and frequencies."""
        options = _options(settings)
        ttl_s = settings.request_id_ttl_s
        key_blobs = KeyBlobs(blobs)
        planner = Planner(database, key_blobs, blobs.sizes, frequencies, options)
        nodes = Domains(
            database, planner, key_blobs, blobs.sizes, options, request_id_ttl_s=ttl_s,
            on_created=frequencies.renew, on_deleted=frequencies.forget, reach=reach,
        )  # fmt: skip
        repairs = Repairs(database, planner, key_blobs, blobs)
        work = Work(database, key_blobs, blobs.sizes, options, reach=reach, request_id_ttl_s=ttl_s)
        observing = Observing(database, frequencies, options)
        return cls(
            roots=Roots(planner, key_blobs, blobs, options, on_created=frequencies.renew),
            nodes=nodes,
            work=work,
            updates=Updates(database, planner, work, repairs, observing.tidy, options, reach=reach),
            observing=observing,
            statistics=Statistics(database, frequencies, options),
        )


def _options(settings: StoreSettings) -> DomainOptions:
    return DomainOptions(
        byte_budget=settings.domain_byte_budget,
        half_life_tokens=settings.domain_half_life_tokens,
        max_domains=settings.max_domains,
        max_tenant_domains=settings.max_tenant_domains,
        max_tenant_bytes=settings.max_tenant_domain_bytes,
        max_tenant_counts_bytes=settings.max_tenant_counts_bytes,
        rows_per_work=settings.work_rows,
        work_lease_s=settings.work_lease_ms / 1_000,
        work_tries=settings.work_tries,
        update_timeout_s=settings.domain_update_timeout_s,
        update_interval_s=settings.domain_update_s,
        rules=ChangeRules(settings.domain_max_changed, settings.domain_min_tenants),
    )
