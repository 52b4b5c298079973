"""What the engine needs of encoders, adapters and heads.

States contracts only: `services/executor/{models,adapters,heads}` fulfil them, and so does a small
fake in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from services.executor.engine.items import ModelKey
from services.executor.engine.tables import LoadedSplit, Table
from services.executor.models.attention import KeyValues
from services.executor.models.bypass import Bypass
from services.executor.models.segments import Segments

# An adapter pinned in device memory: made and read by an Adapters, opaque to the engine.
Slot = Any


class Encoder(Protocol):
    """A base's layers over packed tokens."""

    def embed(
        self,
        token_ids: Tensor,
        type_ids: Tensor | None,
        segments: Segments,
        position_offsets: Tensor | None = None,
    ) -> Tensor:
        """int64 `[tokens]` ids and types, int64 `[rows]` offsets, to `[tokens, hidden]`.

        None stands for zeros.
        """
        ...

    def run(
        self,
        hidden: Tensor,
        segments: Segments,
        *,
        layers: range,
        bypass: Bypass,
        entry_layers: Sequence[int] | None = None,
        kv: KeyValues | None = None,
    ) -> Tensor:
        """`[tokens, hidden]` through a range of layers; a row passes layers below its entry by.

        `entry_layers` ascend over the rows; None is all 0.
        """
        ...


class Adapters(Protocol):
    """One base's adapters, in tiers. Every method may be called from any thread."""

    def prefetch(self, key: ModelKey) -> None:
        """A hint to load it unless it is loaded or loading. Never blocks."""
        ...

    def is_ready(self, key: ModelKey) -> bool:
        """Whether it is in device memory at this moment."""
        ...

    def acquire(self, key: ModelKey) -> Slot | None:
        """Pin the adapter in device memory until `release`.

        None if it is not there yet; it is then being loaded, ahead of what was only prefetched.

        Raises:
            HmiError: It could not be loaded. Asking again, after a pause at least, tries again if
                that can help.
        """
        ...

    def release(self, slot: Slot) -> None:
        """End one `acquire`."""
        ...

    def bypass(self, slots: Sequence[Slot], segments: Segments) -> Bypass:
        """What the rows' adapters do inside the layers."""
        ...

    def pin(self, keys: frozenset[ModelKey]) -> None:
        """Load these and keep them in device memory, as many as it lets be kept; those of the last
        call that are not among them may leave. Never blocks."""
        ...

    def forget(self, key: ModelKey) -> None:
        """Drop a deleted version; from device memory once no batch uses it."""
        ...

    def close(self) -> None:
        """Stop loading. May block."""
        ...

    def resident_digests(self) -> frozenset[str]:
        """Versions in device memory."""
        ...

    def held_digests(self) -> frozenset[str]:
        """Versions in any tier, or on their way in: their blobs must not be collected."""
        ...


class Heads(Protocol):
    """The task layers of a batch's rows."""

    def run(self, slots: Sequence[Slot], hidden: Tensor, segments: Segments) -> Sequence[Tensor]:
        """`[tokens, hidden]` of the last layer to an output a row, as `Event.output` describes.

        Outputs may still be being computed (CUDA): reading one waits for it.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Pinned:
    """What an item needs, kept in memory: its adapter and, on a split base, its tables."""

    slot: Slot
    table: Table | None = None


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in device memory with all that its models need.

    Attributes:
        digest: sha256 of its files, in hex.
        tokenizer_digest: sha256 of its tokenizer.json, in hex.
        num_layers: Layers of the encoder.
        vocab_size: Token ids are below this.
        max_tokens: Longest row.
        device: Where it computes.
        name: What the store calls it.
        split: Its tables and local encoder, if it is split.
    """

    digest: str
    tokenizer_digest: str
    num_layers: int
    vocab_size: int
    max_tokens: int
    device: torch.device
    encoder: Encoder
    adapters: Adapters
    heads: Heads
    name: str = ""
    split: LoadedSplit | None = None

    @property
    def unsplit_digest(self) -> str:
        """Names what computes: bases that share it run in one batch."""
        return self.digest if self.split is None else self.split.unsplit_digest

    def prefetch(self, key: ModelKey, table_version: str) -> None:
        """A hint to load what an item of the model needs. Never blocks."""
        self.adapters.prefetch(key)
        if self.split is not None and table_version:
            self.split.tables.prefetch(table_version)

    def is_ready(self, key: ModelKey, table_version: str) -> bool:
        """Whether an item of the model would find all that it needs in memory."""
        has_tables = self.split is None or self.split.tables.is_ready(table_version)
        return has_tables and self.adapters.is_ready(key)

    def held_blobs(self) -> frozenset[str]:
        """Versions, manifests, segments and encoders in any tier, or on their way in."""
        held = self.adapters.held_digests()
        return held if self.split is None else held | self.split.tables.held_blobs()

    def close(self) -> None:
        """Stop loading for it. May block."""
        self.adapters.close()
        if self.split is not None:
            self.split.tables.close()

    def acquire(self, key: ModelKey, table_version: str) -> Pinned | None:
        """Pin what an item needs until `release`; None while any of it is being loaded.

        Raises:
            HmiError: Some of it could not be loaded.
        """
        if self.split is None:
            slot = self.adapters.acquire(key)
            return None if slot is None else Pinned(slot)
        tables = self.split.tables
        if not tables.is_ready(table_version):
            # Nothing is pinned in vain: a use of what came first would end its claim to stay.
            self.adapters.prefetch(key)
            if (early := tables.acquire(table_version)) is not None:  # it came this moment
                tables.release(early)
            return None
        slot = self.adapters.acquire(key)
        if slot is None:
            return None
        table: Table | None = None
        try:
            table = tables.acquire(table_version)
        finally:
            if table is None:  # half of it is no use, and keeps others out
                self.adapters.release(slot)
        return None if table is None else Pinned(slot, table)

    def release(self, pinned: Pinned) -> None:
        """End one `acquire`."""
        self.adapters.release(pinned.slot)
        if self.split is not None and pinned.table is not None:
            self.split.tables.release(pinned.table)
