"""A split base under training: looked-up rows in place of embeddings and lower layers.

Knows how transformers' encoders are put together; does not know adapters or tasks. Rows are
the local encoder's, rounded as a table holds them, of the n-grams that tables would answer with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from services.common import ngrams
from services.common.errors import InvalidArgument
from services.common.sorted_keys import NONE, IntArray, without
from services.executor.construct.local_file import load_local
from services.executor.device import pick_dtype
from services.executor.models.encoder import load_base
from services.executor.models.local_encoder import LocalEncoder
from services.executor.models.segments import Segments
from services.executor.train.tables import Tables


class RowCache:
    """Rows of n-grams, each computed once and kept.

    Args:
        local: What computes them.
    """

    def __init__(self, local: LocalEncoder) -> None:
        self._local = local
        self._keys = self._places = NONE  # ascending, and where in `_rows` the row of each is
        self._rows = local.rows(torch.from_numpy(NONE))

    def rows(self, keys: IntArray) -> Tensor:
        """float16 `[n, num_slots, hidden]` of packed n-grams `[n]`."""
        missing = without(np.unique(keys), self._keys)
        if len(missing):
            self._add(missing)
        places = self._places[np.searchsorted(self._keys, keys)]
        return self._rows[torch.from_numpy(places)]

    @torch.inference_mode()  # as the rows are, whether it is while learning or judging
    def _add(self, keys: IntArray) -> None:
        begin, end = len(self._keys), len(self._keys) + len(keys)
        if end > len(self._rows):
            # Twice as many as are needed: a first epoch adds at every step.
            longer = self._rows.new_empty(2 * end, *self._rows.shape[1:])
            longer[:begin] = self._rows[:begin]
            self._rows = longer
        self._rows[begin:end] = self._local.rows(torch.from_numpy(keys))
        every_key = np.concatenate([self._keys, keys])
        order = np.argsort(every_key, kind="stable")
        self._keys = every_key[order]
        self._places = np.concatenate([self._places, np.arange(begin, end)])[order]


class LookedUp(nn.Module):
    """Stands where a transformers model has its embeddings; puts out the split layer's input.

    Args:
        local: The local encoder.
        pad_id: Token id that fills up rows.
        tables: What answers for an n-gram; None: always its own row, as under `compute`.
    """

    def __init__(self, local: LocalEncoder, pad_id: int, tables: Tables | None) -> None:
        super().__init__()
        self._local = local
        self._cache = RowCache(local)
        self._pad_id = pad_id
        self._tables = tables

    def forward(
        self,
        input_ids: Tensor,
        *_unused: Any,
        token_type_ids: Tensor | None = None,
        **_options: Any,
    ) -> Tensor:
        """int64 `[rows, seq]` padded at the end, to float32 `[rows, seq, hidden]`; padding is 0."""
        is_text = (input_ids != self._pad_id).cpu()
        segments = Segments(is_text.sum(1).tolist(), self._local.device)
        ids = input_ids.cpu()[is_text].numpy()
        keys = ngrams.keys_of(ids, segments.lengths)
        if self._tables is not None:
            keys = self._tables.answering(keys, is_learning=self.training)
        values = self._cache.rows(keys)
        types = None if token_type_ids is None else token_type_ids.cpu()[is_text]
        with torch.no_grad():
            rows = self._local.split_values(values, segments)
            types = None if types is None else types.to(self._local.device)
            merged = self._local.merge(rows, types, segments).float()
        out = torch.zeros(*input_ids.shape, merged.shape[1], device=merged.device)
        out[is_text.to(merged.device)] = merged
        return out.to(input_ids.device)


class Passed(nn.Module):
    """Stands where a layer below the split was."""

    def forward(self, hidden: Tensor, *_unused: Any, **_options: Any) -> Tensor:
        return hidden


def look_up(
    encoder: nn.Module,
    base_dir: Path,
    local_encoder: Path,
    tables: Tables | None,
    *,
    device: torch.device,
) -> int:
    """Put a local encoder in the place of a transformers encoder's embeddings and lower layers.

    Args:
        encoder: BERT's, RoBERTa's or DistilBERT's, without a task's head. Changed in place.
        base_dir: The unsplit base.
        local_encoder: Its `local_encoder.safetensors`.
        tables: As `LookedUp` takes them.

    Returns:
        The split: the number of layers taken out.

    Raises:
        InvalidArgument: The file is no local encoder, or not of a base of this size.
    """
    base = load_base(base_dir, dtype=pick_dtype("auto", device), device=device)
    local = load_local(local_encoder, base)
    stack: Any = getattr(encoder, "encoder", None) or getattr(encoder, "transformer", None)
    if local.split >= len(stack.layer):
        raise InvalidArgument("local_encoder", "splits at or above the base's last layer")
    model: Any = encoder
    model.embeddings = LookedUp(local, base.config.pad_token_id, tables)
    for index in range(local.split):
        stack.layer[index] = Passed()
    return local.split
