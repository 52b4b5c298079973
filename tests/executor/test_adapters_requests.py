"""What may be between disk and device at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from services.executor.adapters import requests
from services.executor.adapters.packing import Packed
from services.executor.adapters.requests import Requests


@dataclass(frozen=True)
class Version:
    digest: str
    tenant: str = "acme"


def packed(size_bytes: int) -> Packed:
    head: Any = None
    rows = torch.empty(size_bytes // 4, 1, dtype=torch.float32, device="meta")
    return Packed(rows=rows, tables={}, bottlenecks={}, head=head)


def of(count: int) -> Requests:
    held = Requests()
    for number in range(count):
        held.add(Version(f"{number:064x}"), is_claimed=True)
    return held


def read_one(held: Requests, size_bytes: int) -> bool:
    """As the store does: take what may be staged, finish one. Whether anything may be."""
    new = held.to_stage()
    for request in new:
        request.is_staging = True
    reading = [request for request in held._requests.values() if request.is_staging]
    if not reading:
        return False
    reading[0].is_staging, reading[0].packed = False, packed(size_bytes)
    return True


def test_small_ones_are_staged_by_number() -> None:
    held = of(200)
    while read_one(held, 4_000):
        pass
    assert len(held.staged()) == 64


def test_large_ones_are_staged_by_bytes() -> None:
    held = of(200)
    size_bytes = 256 << 20
    while read_one(held, size_bytes):
        pass
    # Those that were being read when it was full come too.
    num_most = requests._MAX_STAGED_BYTES // size_bytes + requests._MAX_READING
    assert 4 <= len(held.staged()) <= num_most
    for request, _ in held.staged():
        held.take(request.key)
    assert held.to_stage()
