"""What the store speaks of beside the protos' resources, which it keeps as they are.

Knows no storage and no RPC.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlobState:
    """What is held of a blob."""

    held_bytes: int
    is_complete: bool


@dataclass(frozen=True)
class BlobFile:
    """A complete blob on disk. `used_at` is the time (Unix seconds) it was last asked for."""

    sha256: str
    size_bytes: int
    used_at: float
