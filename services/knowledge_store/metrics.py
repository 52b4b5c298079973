"""What the knowledge store counts beside its RPCs."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

blob_bytes = Gauge("hmi_store_blob_bytes", "Bytes of all complete blobs.")
blobs = Gauge("hmi_store_blobs", "Complete blobs.")
blobs_collected_total = Counter("hmi_store_blobs_collected_total", "Blobs deleted as unused.")
blobs_damaged_total = Counter(
    "hmi_store_blobs_damaged_total", "Blobs set aside as their bytes differed from their name."
)
revision = Gauge("hmi_store_revision", "Latest revision of the metadata.")
watchers = Gauge("hmi_store_watchers", "Watches being served.")
members = Gauge("hmi_store_members", "Gateways and executors with a lease.")
domain_updates_total = Counter(
    "hmi_domain_updates_total", "Updates of domain tables that ended.", ["outcome"]
)
domain_repairs_total = Counter(
    "hmi_domain_repairs_total",
    "Damaged segments: restored as they were, or their rows rewritten in an update.",
    ["outcome"],
)
domain_work = Gauge("hmi_domain_work", "Pieces of rows that wait to be materialised.")
domain_observations_total = Counter(
    "hmi_domain_observations_total", "Messages of n-gram counts taken, repeats left out."
)
