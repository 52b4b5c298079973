"""Asks a gRPC server whether it serves: the health check of a container.

Run as `python -m services.common.health [HOST:PORT]`. Knows the standard health protocol; does not
know which service it asks, nor any settings class: it starts every few seconds and must be cheap.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def is_serving(address: str, *, service: str = "", timeout_s: float = 3.0) -> bool:
    """Whether the server at `address` (host:port) says SERVING for `service` ("" is all of it).

    No answer within `timeout_s`, or an error, is a no.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            response = stub.Check(request, timeout=timeout_s)
        except grpc.RpcError:
            return False
    return bool(response.status == health_pb2.HealthCheckResponse.SERVING)


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if the server says SERVING, otherwise 1 and a line on stderr."""
    parser = argparse.ArgumentParser(prog="python -m services.common.health", description=__doc__)
    parser.add_argument("address", nargs="?", help="default: HMI_PORT on loopback")
    parser.add_argument("--service", default="", help="full name; default: the server as a whole")
    options = parser.parse_args(arguments)
    if not options.address and "HMI_PORT" not in os.environ:
        parser.error("name an address or set HMI_PORT")
    address = options.address or f"127.0.0.1:{os.environ['HMI_PORT']}"
    if is_serving(address, service=options.service):
        return 0
    print(f"{address} is not serving", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
