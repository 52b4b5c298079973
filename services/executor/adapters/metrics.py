"""Figures about adapters, by tier and base; never by tenant (ten thousand labels break servers)."""

from __future__ import annotations

from prometheus_client import Gauge, Histogram

SLOTS_USED = Gauge("hmi_adapter_slots_used", "Adapters in device memory.", ["base"])
SLOTS_TOTAL = Gauge(
    "hmi_adapter_slots_total",
    "Adapters in device memory, and how many more of their mean size would fit.",
    ["base"],
)
LOAD_SECONDS = Histogram(
    "hmi_adapter_load_seconds",
    "Time to bring one adapter into a tier.",
    ["tier"],
    buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
)
DEVICE_BYTES = Gauge("hmi_device_bytes", "Device memory taken.", ["base", "kind"])


def forget(base: str) -> None:
    """A base is no longer served: it has no figures."""
    SLOTS_USED.remove(base)
    SLOTS_TOTAL.remove(base)
    DEVICE_BYTES.remove(base, "adapters")
