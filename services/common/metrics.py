"""The Prometheus endpoint, and the counter every service has.

A metric lives beside the code that counts it; here are only those of every RPC.
"""

from __future__ import annotations

from prometheus_client import Counter, Histogram, start_http_server

requests_total = Counter(
    "hmi_requests_total", "RPCs answered.", labelnames=("service", "method", "code")
)
request_seconds = Histogram(
    "hmi_request_seconds",
    "Time to answer an RPC, in seconds.",
    labelnames=("service", "method"),
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
)


def serve_metrics(port: int, host: str = "127.0.0.1") -> int:
    """Serve `/metrics` on a thread of its own; returns the port, a free one if `port` is 0."""
    server, _ = start_http_server(port, addr=host)
    return int(server.server_address[1])
