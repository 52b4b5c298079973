"""What the gateway counts, by service and outcome, never by tenant."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

_BUCKETS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    5,
    30,
)

queue_seconds = Histogram(
    "hmi_queue_seconds", "Time an item waits for credit, in seconds.", buckets=_BUCKETS
)
admission_seconds = Histogram(
    "hmi_admission_seconds",
    "Time from a request's arrival to its items' queueing, tokenization included, in seconds.",
    buckets=_BUCKETS,
)
queue_items = Gauge("hmi_queue_items", "Items waiting.")
items_total = Counter("hmi_items_total", "Items that ended, by outcome.", labelnames=("outcome",))
retries_total = Counter("hmi_item_retries_total", "Items given to a further executor after a loss.")
executors_connected = Gauge("hmi_executors_connected", "Executors with an open stream.")

answered = items_total.labels("answered")
failed = items_total.labels("failed")
cancelled = items_total.labels("cancelled")
expired = items_total.labels("expired")
refused = items_total.labels("refused")
