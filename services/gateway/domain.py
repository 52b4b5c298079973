"""What the gateway thinks in: callers, bases, versions, items.

Knows no RPC and no queue. Values that many requests share (protobuf keys, provenance) are made once
per version.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from enum import Enum

from hmi.admin.v1 import resources_pb2
from hmi.executor.v1 import executor_pb2
from hmi.inference.v1 import inference_pb2
from services.common.errors import HmiError


@dataclass(frozen=True, slots=True)
class Caller:
    """Who a credential belongs to. `tenant` is empty for an admin who acts for nobody."""

    key_id: str
    tenant: str
    is_admin: bool


@dataclass(frozen=True, slots=True)
class Base:
    """A base as the store describes it."""

    pb: resources_pb2.Base

    @property
    def digest(self) -> str:
        return self.pb.digest

    @property
    def tokenizer_digest(self) -> str:
        return self.pb.tokenizer_digest

    @property
    def max_tokens(self) -> int:
        return self.pb.max_tokens

    @property
    def is_split(self) -> bool:
        """Whether its lower layers are looked up in a tree of tables."""
        return self.pb.HasField("split")

    def file_digest(self, name: str) -> str | None:
        """sha256 of one of its files, or None if it has none of that name."""
        return next((file.sha256 for file in self.pb.files if file.name == name), None)


@dataclass(frozen=True, slots=True)
class Version:
    """One immutable version of a model, with what every request to it needs."""

    pb: resources_pb2.Version
    key: executor_pb2.ModelKey
    provenance: inference_pb2.Provenance
    labels: tuple[str, ...]

    @classmethod
    def from_pb(cls, pb: resources_pb2.Version) -> Version:
        key = executor_pb2.ModelKey(
            tenant=pb.tenant,
            model=pb.model,
            version=pb.number,
            digest=pb.digest,
            base_digest=pb.base_digest,
        )
        provenance = inference_pb2.Provenance(
            tenant=pb.tenant,
            model=pb.model,
            version=pb.number,
            digest=pb.digest,
            base=pb.base,
            base_digest=pb.base_digest,
            table_version=pb.table_version,
        )
        return cls(pb, key, provenance, tuple(pb.labels))

    def reading(self, table_version: str) -> Version:
        """This version with the tables that a request to it reads."""
        if table_version == self.table_version:
            return self
        provenance = inference_pb2.Provenance()
        provenance.CopyFrom(self.provenance)
        provenance.table_version = table_version
        return replace(self, provenance=provenance)

    @property
    def table_version(self) -> str:
        """sha256 of the manifest of the tables it reads; empty on a base that is not split."""
        return self.provenance.table_version

    @property
    def task(self) -> resources_pb2.Task.ValueType:
        return self.pb.task

    @property
    def digest(self) -> str:
        return self.pb.digest

    @property
    def base_digest(self) -> str:
        return self.pb.base_digest


@dataclass(frozen=True, slots=True)
class Text:
    """One input, and its place in the request for error messages (`inputs[3].text`)."""

    text: str
    pair: str | None
    field: str
    pair_field: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tokenized input.

    Attributes:
        ids: Token ids, special tokens included.
        num_first: Tokens of the first segment of a pair; 0 if all are one segment.
        words: Per token, the index of its word, or None for special tokens. Empty unless asked for.
        offsets: Per token, first and end character (code points). Empty unless asked for.
    """

    ids: list[int]
    num_first: int
    words: list[int | None] = field(default_factory=list)
    offsets: list[tuple[int, int]] = field(default_factory=list)


class Reply:
    """What one call waits for: the tensors of all its items, or the first error.

    Args:
        num_items: Items whose tensors are awaited.
    """

    __slots__ = ("_left", "_tensors", "future")

    def __init__(self, num_items: int) -> None:
        self._left = num_items
        self._tensors: list[executor_pb2.Tensor | None] = [None] * num_items
        self.future: asyncio.Future[list[executor_pb2.Tensor]]
        self.future = asyncio.get_running_loop().create_future()

    def answer(self, index: int, tensor: executor_pb2.Tensor) -> None:
        """One item's tensor."""
        self._tensors[index] = tensor
        self._left -= 1
        if self._left == 0 and not self.future.done():
            self.future.set_result([t for t in self._tensors if t is not None])

    def fail(self, error: HmiError) -> None:
        """One item failed, and so does the call."""
        if not self.future.done():
            self.future.set_exception(error)


# Ends the name of the pool where items of a base wait whose models are loaded nowhere.
COLD_POOL = "/cold"


class Place(Enum):
    """Where an item is."""

    QUEUED = "queued"
    EXECUTING = "executing"
    DONE = "done"


@dataclass(slots=True, eq=False)
class Item:
    """One input on its way through the queue and an executor.

    Attributes:
        item_id: Unique in this gateway, growing; travels through retries.
        version: Resolved once, at admission.
        weight: The tenant's share when the item was queued.
        deadline: On the event loop's clock, in seconds.
        queued_at: On the event loop's clock, in seconds.
        reply: Where the answer goes, at `index`.
        num_attempts: Executors it was given to.
        is_cold: Whether it waits as one whose model is loaded nowhere.
    """

    item_id: int
    version: Version
    tokenizer_digest: str
    encoded: Encoded
    weight: float
    priority: int
    deadline: float
    queued_at: float
    reply: Reply
    index: int
    place: Place = Place.QUEUED
    num_attempts: int = 0
    is_cold: bool = False

    @property
    def pool(self) -> str:
        """Where it waits."""
        base = self.version.pb.base_digest
        return base + COLD_POOL if self.is_cold else base

    @property
    def tenant(self) -> str:
        return self.version.pb.tenant

    @property
    def base_digest(self) -> str:
        return self.version.pb.base_digest

    @property
    def cost(self) -> int:
        """What it takes from an executor's credit and the tenant's account, in tokens."""
        return len(self.encoded.ids)
