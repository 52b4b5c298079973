"""What the knowledge store can be told, by the environment.

Knows names and bounds of settings; does not know what uses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, model_validator

from services.common.config import ServiceSettings


class StoreSettings(ServiceSettings):
    """Settings of the knowledge store."""

    data_dir: Path = Field(Path(".hmi"), description="Blobs, uploads and the embedded Valkey.")
    redis_url: str = Field("", description="Redis to keep metadata in; empty runs Valkey here.")
    redis_timeout_s: float = Field(3.0, gt=0, description="Longest wait for Redis to answer.")
    startup_timeout_s: float = Field(30.0, gt=0, description="Longest wait for Redis at start.")
    admin_key: SecretStr = Field(SecretStr(""), description='Secret of the key "admin".')

    max_blob_bytes: int = Field(2 << 30, gt=0, description="Largest blob that is taken.")
    max_models: int = Field(
        100_000, gt=0, description="Models of a tenant whose quota leaves max_models at 0."
    )
    request_id_ttl_s: int = Field(
        86_400, gt=0, description="How long a request_id answers as it did the first time."
    )
    log_revisions: int = Field(
        4_096, gt=0, description="Revisions a watch can resume over; older ones need a snapshot."
    )
    sign_of_life_s: float = Field(
        4.0, gt=0, le=5.0, description="Longest silence of a watch; the contract says 5."
    )

    lease_ms: int = Field(10_000, gt=0, description="A member not heard of for so long is dead.")
    gc_interval_s: float = Field(60.0, gt=0, description="Time between collections of blobs.")
    gc_grace_s: float = Field(
        3_600.0, gt=0, description="How long a blob that nothing holds is kept."
    )
    upload_age_s: float = Field(
        86_400.0, gt=0, description="How long an interrupted upload can be resumed."
    )

    domain_byte_budget: int = Field(
        64 << 20, gt=0, description="Bytes of values a domain's own rows may take by default."
    )
    domain_half_life_tokens: int = Field(
        1_000_000, gt=0, description="Tokens after which a domain's counts weigh half by default."
    )
    domain_update_s: float = Field(
        0.0, ge=0, description="Time between scheduled updates of all domains; 0 makes none."
    )
    domain_update_timeout_s: float = Field(
        3_600.0, gt=0, description="An update that nobody works on for so long is rolled back."
    )
    domain_min_tenants: int = Field(
        3, ge=1, description="Tenants that must send an n-gram before a shared domain learns it."
    )
    domain_max_changed: float = Field(
        0.05, gt=0, le=1, description="Share of a shared domain's rows that one update may change."
    )
    max_domains: int = Field(1_000, gt=0, description="Domains of one base.")
    max_tenant_domains: int = Field(32, gt=0, description="Domains that are one tenant's own.")
    max_tenant_domain_bytes: int = Field(
        256 << 20, gt=0, description="Bytes of values a tenant's own domain may have at most."
    )
    max_tenant_counts_bytes: int = Field(
        64 << 20, gt=0, description="Bytes of n-gram counts a tenant's own domain may be made from."
    )
    work_rows: int = Field(
        1 << 18, gt=0, description="Rows of a table that an executor materialises at once."
    )
    work_lease_ms: int = Field(
        30_000, gt=0, description="Rows whose executor is not heard of for so long go to another."
    )
    work_tries: int = Field(
        8, gt=0, description="Times that rows are given out until their update is rolled back."
    )
    counts_keys: int = Field(
        1 << 18, gt=0, description="N-grams whose counts are kept for one tenant in one domain."
    )
    counts_total_keys: int = Field(
        1 << 23, gt=0, description="N-grams whose counts are kept in all; each takes 16 bytes."
    )
    counts_snapshot_s: float = Field(
        10.0, gt=0, description="Time between writes of the n-gram counts to disk."
    )
    store_failpoints: str = Field(
        "", description="Test facility, see services/knowledge_store/failpoints.py. Empty: off."
    )

    @model_validator(mode="after")
    def _grace_covers_a_lease(self) -> Self:
        """After a restart the held blobs are unknown until each member has renewed once."""
        if self.gc_grace_s * 1_000 < self.lease_ms:
            raise ValueError("HMI_GC_GRACE_S must be at least HMI_LEASE_MS")
        return self
