"""A table version: the manifest that names a domain's path, its encoders and its segments.

Knows the manifest's format; does not know the segments' content or where blobs lie.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from services.common.array_blob import canonical_json
from services.common.errors import InvalidArgument
from services.common.ids import MAX_PATH_NAMES, check_path, check_sha256, parent_path
from services.common.ngrams import MAX_ORDER
from services.executor.miss_policy import MissPolicy

_Parsed = TypeVar("_Parsed")

MANIFEST_FORMAT = "hmi.plot_manifest/1"


@dataclass(frozen=True, slots=True)
class SegmentRef:
    """A segment's blob.

    Attributes:
        sha256: Its digest, in hex.
        order: Tokens of its n-grams: 1, 2 or 3.
        num_entries: Rows, or keys that it takes away.
        size_bytes: Size of the blob.
        is_removal: It holds only keys, of rows that earlier segments hold.
    """

    sha256: str
    order: int
    num_entries: int
    size_bytes: int
    is_removal: bool


@dataclass(frozen=True, slots=True)
class NodeRef:
    """A node of the path.

    Attributes:
        path: The domain's path; empty for the root.
        table_number: Counts the node's commits.
        encoder_sha256: The local encoder that made its rows.
        segments: In the order in which they apply: a later one wins.
    """

    path: str
    table_number: int
    encoder_sha256: str
    segments: tuple[SegmentRef, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """A table version.

    Attributes:
        base_digest: Digest of the split base.
        miss_policy: The leaf's.
        nodes: From the root to the leaf, at least the root.
    """

    base_digest: str
    miss_policy: MissPolicy
    nodes: tuple[NodeRef, ...]

    @property
    def path(self) -> str:
        """The domain's path."""
        return self.nodes[-1].path

    @property
    def encoder_sha256(self) -> str:
        """The leaf's encoder, which computes what is missing."""
        return self.nodes[-1].encoder_sha256

    @property
    def segments(self) -> tuple[SegmentRef, ...]:
        """Every node's segments."""
        return tuple(segment for node in self.nodes for segment in node.segments)

    def to_bytes(self) -> bytes:
        """The manifest's blob."""
        content = {"format": MANIFEST_FORMAT, **asdict(self)}
        return canonical_json(content)

    @classmethod
    def from_bytes(cls, blob: bytes) -> Manifest:
        """The manifest in a blob.

        Raises:
            InvalidArgument: It is none; the field is named.
        """
        try:
            content = json.loads(blob)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument("manifest", "is not JSON") from error
        fields = _object("manifest", content, ("format", "base_digest", "miss_policy", "nodes"))
        if fields["format"] != MANIFEST_FORMAT:
            raise InvalidArgument("manifest.format", f"is not {MANIFEST_FORMAT}")
        if fields["miss_policy"] not in list(MissPolicy):
            raise InvalidArgument("manifest.miss_policy", "is neither backoff nor compute")
        nodes = _list("manifest.nodes", fields["nodes"], _node)
        if not 1 <= len(nodes) <= MAX_PATH_NAMES + 1:
            raise InvalidArgument("manifest.nodes", f"must be 1 to {MAX_PATH_NAMES + 1}")
        for index, (parent, node) in enumerate(zip((None, *nodes), nodes, strict=False)):
            _check_place(f"manifest.nodes[{index}].path", node.path, parent)
        base_digest = _sha256("manifest.base_digest", fields["base_digest"])
        return cls(base_digest, MissPolicy(fields["miss_policy"]), nodes)


def _check_place(field: str, path: str, parent: NodeRef | None) -> None:
    """Each node is the child of the one before it; the first is the root."""
    if parent is None:
        if path:
            raise InvalidArgument(field, "the first node must be the root, whose path is empty")
        return
    if parent_path(check_path(field, path)) != parent.path:
        raise InvalidArgument(field, f"is no child of {parent.path!r}")


def _node(field: str, value: object) -> NodeRef:
    fields = _object(field, value, ("path", "table_number", "encoder_sha256", "segments"))
    if not isinstance(fields["path"], str):
        raise InvalidArgument(f"{field}.path", "must be text")
    return NodeRef(
        path=fields["path"],
        table_number=_count(f"{field}.table_number", fields["table_number"]),
        encoder_sha256=_sha256(f"{field}.encoder_sha256", fields["encoder_sha256"]),
        segments=_list(f"{field}.segments", fields["segments"], _segment),
    )


def _segment(field: str, value: object) -> SegmentRef:
    fields = _object(field, value, ("sha256", "order", "num_entries", "size_bytes", "is_removal"))
    if not isinstance(fields["is_removal"], bool):
        raise InvalidArgument(f"{field}.is_removal", "must be true or false")
    order = _count(f"{field}.order", fields["order"])
    if not 1 <= order <= MAX_ORDER:
        raise InvalidArgument(f"{field}.order", f"must be 1 to {MAX_ORDER}")
    return SegmentRef(
        sha256=_sha256(f"{field}.sha256", fields["sha256"]),
        order=order,
        num_entries=_count(f"{field}.num_entries", fields["num_entries"]),
        size_bytes=_count(f"{field}.size_bytes", fields["size_bytes"]),
        is_removal=fields["is_removal"],
    )


def _object(field: str, value: object, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise InvalidArgument(field, f"must be an object of {', '.join(names)}")
    return value


def _list(
    field: str, value: object, parse: Callable[[str, object], _Parsed]
) -> tuple[_Parsed, ...]:
    if not isinstance(value, list):
        raise InvalidArgument(field, "must be a list")
    return tuple(parse(f"{field}[{index}]", element) for index, element in enumerate(value))


def _count(field: str, value: object) -> int:
    if type(value) is not int or value < 0:
        raise InvalidArgument(field, "must be a count")
    return value


def _sha256(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(field, "must be a sha256 in hex")
    return check_sha256(field, value)
