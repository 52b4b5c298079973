"""What the engine works on: items in, events out.

Knows no wire format, no queue and no device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.errors import HmiError


@dataclass(frozen=True, slots=True)
class ModelKey:
    """One immutable version of one tenant's model. Weights are found by the digest alone."""

    tenant: str
    model: str
    version: int
    digest: str
    base_digest: str

    def __str__(self) -> str:
        return f"{self.tenant}/{self.model}@{self.version}"


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One sequence to run through one model.

    Attributes:
        id: Unique in this process and rising with arrival, so a smaller id is an older item.
        key: The model.
        token_ids: int64 `[tokens]`, special tokens included, at least one.
        num_first_segment_tokens: Tokens of a text pair's first text; 0 if there is one text only.
        entry_layer: First layer that runs. Rows of a split base come in above layer 0.
        table_version: sha256 of the manifest of the tables to read (split bases), or empty.
        position_offset: Position of the first token; not 0 when earlier tokens are in `kv_ref`.
        kv_ref: Handle of the keys and values of earlier tokens (decoders), or None. No base served
            so far has any: an item that carries one is refused.
        deadline: `time.monotonic()` seconds after which nobody waits for the answer.
        weight: The tenant's share of batches, relative to the others'.
    """

    id: int
    key: ModelKey
    token_ids: NDArray[np.int64]
    num_first_segment_tokens: int = 0
    entry_layer: int = 0
    table_version: str = ""
    position_offset: int = 0
    kv_ref: object | None = None
    deadline: float = math.inf
    weight: float = 1.0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


@dataclass(frozen=True, slots=True, eq=False)
class Event:
    """News of one item: an output or an error, never both.

    Attributes:
        item: The item.
        output: float32; logits `[labels]`, logits a token `[tokens, labels]`, or an embedding
            `[hidden]`.
        error: Why the item failed.
        sequence: Counts the item's events from 0.
        is_final: No event of the item follows.
    """

    item: Item
    output: NDArray[np.float32] | None = None
    error: HmiError | None = None
    sequence: int = 0
    is_final: bool = True
