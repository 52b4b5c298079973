"""Figures about tables, by base; never by tenant or domain, of which there are too many."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

LOOKUPS = Counter(
    "hmi_plot_lookups_total", "Tokens looked up, by what answered.", ["base", "result"]
)
ROWS = Gauge("hmi_plot_rows", "Rows of the tables that are loaded, by tier.", ["base", "tier"])
TABLES = Gauge("hmi_plot_tables", "Table versions that are loaded.", ["base"])
HOST_BYTES = Gauge("hmi_plot_host_bytes", "Host memory that tables' indexes take.", ["base"])
LOAD_SECONDS = Histogram(
    "hmi_plot_load_seconds",
    "Time to load one table version.",
    buckets=(0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
)


def forget(base: str) -> None:
    """A base is no longer served: it has no tables."""
    for gauge in (TABLES, HOST_BYTES):
        gauge.remove(base)
    for tier in ("hot", "mapped"):
        ROWS.remove(base, tier)
