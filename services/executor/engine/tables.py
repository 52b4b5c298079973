"""What the engine needs of a split base's tables and local encoder.

States contracts only: `services/executor/{plot,models}` fulfil them, and so does a small fake in
the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.executor.models.segments import Segments
from services.executor.plot.manifest import Manifest


class Table(Protocol):
    """One table version: the rows of a domain's whole path, pinned until released."""

    @property
    def manifest(self) -> Manifest:
        """What it is made of."""
        ...


class Source(NamedTuple):
    """What one row of a batch reads: a table its Tables lent, and whose request it is."""

    table: Any
    tenant: str


class Retrieved(Protocol):
    """What the tables gave for packed rows."""

    @property
    def values(self) -> Tensor:
        """float16 `[tokens, slots, hidden]`, on the base's device."""
        ...

    @property
    def results(self) -> Tensor:
        """uint8 `[tokens]`, there too: tokens of the n-gram that answered, 0 if it was computed."""
        ...


class Tables(Protocol):
    """One split base's tables, in tiers. Every method may be called from any thread."""

    def prefetch(self, version: str) -> None:
        """A hint to load a table version unless it is loaded or loading. Never blocks."""
        ...

    def is_ready(self, version: str) -> bool:
        """Whether it can be read at this moment."""
        ...

    def acquire(self, version: str) -> Table | None:
        """Keep a table version readable until `release`. None if it is not yet; it is then loaded.

        Raises:
            HmiError: It could not be loaded. Told once; asking again tries again.
        """
        ...

    def release(self, table: Any) -> None:
        """End one `acquire`."""
        ...

    def retrieve(
        self, token_ids: NDArray[np.int64], lengths: Sequence[int], sources: Sequence[Source]
    ) -> Retrieved:
        """The values of packed rows, int64 `[tokens]`, each row's n-grams in its own tables."""
        ...

    def held_blobs(self) -> frozenset[str]:
        """Manifests, segments and encoders that are loaded or on their way in."""
        ...

    def refresh(self) -> None:
        """Keep near what was asked for most since the last time. Slow."""
        ...

    def close(self) -> None:
        """Stop loading. May block."""
        ...


class Merger(Protocol):
    """What turns looked-up values into hidden states: a split base's local encoder."""

    def split_values(self, values: Tensor, segments: Segments) -> Tensor:
        """`[tokens, slots, hidden]` to each token's row `[tokens, hidden]`."""
        ...

    def merge(
        self,
        rows: Tensor,
        type_ids: Tensor | None,
        segments: Segments,
        position_offsets: Tensor | None = None,
    ) -> Tensor:
        """Rows `[tokens, hidden]` to the input of the first global layer."""
        ...


class RowEncoder(Protocol):
    """What makes tables' rows: a local encoder."""

    @property
    def form(self) -> str:
        """`centre` or `sum`."""
        ...

    @property
    def num_slots(self) -> int:
        """Vectors a row holds."""
        ...

    @property
    def hidden_size(self) -> int:
        """Numbers in a vector."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in, before rows are rounded to float16."""
        ...

    def rows(self, keys: Tensor) -> Tensor:
        """float16 `[n, slots, hidden]` of n-grams int64 `[n]`; none depends on the others."""
        ...


@dataclass(frozen=True, slots=True)
class LoadedSplit:
    """The local part of a split base.

    Attributes:
        layer: The first global layer, where its rows come in.
        unsplit_digest: Bases of one unsplit digest share encoder, adapters and heads.
        load_encoder: Brings a local encoder to the device by its sha256; blocks. InvalidArgument
            if it is none of this base's.
    """

    layer: int
    unsplit_digest: str
    tables: Tables
    merger: Merger
    load_encoder: Callable[[str], RowEncoder]
