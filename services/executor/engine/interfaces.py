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
            HmiError: It could not be loaded. Told once; asking again tries again.
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
