"""What a domain's answers are made of: the tables of its whole path, written down as a manifest.

Knows the manifest's format (`hmi.plot_manifest/1`); does not know when tables change.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.array_blob import canonical_json
from services.common.ids import parent_path

FORMAT = "hmi.plot_manifest/1"
_POLICIES = {rpb.MISS_POLICY_BACKOFF: "backoff", rpb.MISS_POLICY_COMPUTE: "compute"}


def manifest(base_digest: str, nodes: Sequence[rpb.Domain]) -> bytes:
    """The manifest of a path, from the root to the leaf."""
    return canonical_json(
        {
            "format": FORMAT,
            "base_digest": base_digest,
            "miss_policy": _POLICIES[nodes[-1].miss_policy],
            "nodes": [_node(node) for node in nodes],
        }
    )


def blobs_of(data: bytes) -> set[str]:
    """sha256 of every blob that a manifest's answers need: segments and encoders."""
    held: set[str] = set()
    for node in json.loads(data)["nodes"]:
        held.add(node["encoder_sha256"])
        held.update(segment["sha256"] for segment in node["segments"])
    return held


def path_to(path: str) -> list[str]:
    """Paths from the root to a node, both included."""
    paths = [path]
    while path:
        path = parent_path(path)
        paths.append(path)
    return paths[::-1]


def _node(node: rpb.Domain) -> dict[str, object]:
    return {
        "path": node.path,
        "table_number": node.table_number,
        "encoder_sha256": node.encoder_sha256,
        "segments": [
            {
                "sha256": segment.sha256,
                "order": segment.order,
                "num_entries": segment.num_entries,
                "size_bytes": segment.size_bytes,
                "is_removal": segment.is_removal,
            }
            for segment in node.segments
        ],
    }
