"""Scaled dot-product attention inside the rows of a packed batch.

The only place where sequences are padded and where a row's tokens meet. Knows no weights and no
adapter; what a query may see beyond its own row is the key-value seam's business.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from services.executor.models.segments import ByLength, Segments


class Visible(NamedTuple):
    """What a batch's queries attend to.

    Attributes:
        keys, values: `[rows, heads, num_keys, head_size]`.
        mask: bool, broadcastable to `[rows, heads, num_queries, num_keys]`, True where a query may
            look; at least one key for every query. None if every query sees every key.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor | None


class KeyValues(Protocol):
    """Keys and values that outlive a batch: a decoder's cache, an encoder's collector.

    Asked once a layer. The order of a row's tokens is its own: a cache that puts a row's earlier
    tokens before `keys` is met by `position_offsets` in the embedding.
    """

    def extend(self, layer: int, keys: Tensor, values: Tensor, segments: Segments) -> Visible:
        """Take this batch's keys and values of a layer and say what its queries see.

        Args:
            layer: Index in the whole base.
            keys: `[rows, heads, max_len, head_size]`, zeros after each row's last token.
            values: As `keys`.
            segments: The rows' boundaries; a row's query i stands at `[row, :, i]`.
        """
        ...


class OwnRow:
    """The encoder's rule: a token sees its whole row and nothing else."""

    def extend(self, layer: int, keys: Tensor, values: Tensor, segments: Segments) -> Visible:
        return Visible(keys, values, segments.key_mask)


def attend(
    qkv: Tensor, segments: Segments, *, num_heads: int, layer: int, key_values: KeyValues
) -> Tensor:
    """softmax(Q K^T / sqrt(head_size)) V for each row and head (Vaswani et al. 2017, section 3.2).

    Args:
        qkv: `[tokens, 3 * hidden]`: query, key and value of each token.

    Returns:
        `[tokens, hidden]`.
    """
    heads = qkv.view(qkv.shape[0], 3, num_heads, -1)
    if segments.is_ragged and isinstance(key_values, OwnRow):
        return _by_length(heads, segments.by_length, layer, key_values)
    context = _padded(segments.pad(heads), segments, layer, key_values)
    return segments.unpad(context)


def _by_length(heads: Tensor, rows: ByLength, layer: int, key_values: KeyValues) -> Tensor:
    """`[tokens, 3, heads, head_size]` to `[tokens, hidden]`, padding no more than is needed."""
    contexts: list[Tensor] = []
    for group in rows.groups:
        own = group.segments
        padded = heads.index_select(0, group.source)
        padded = padded.view(own.num_rows, own.max_len, *heads.shape[1:])
        contexts.append(_padded(padded, own, layer, key_values).flatten(0, 1))
    return torch.cat(contexts).index_select(0, rows.place)


def _padded(heads: Tensor, segments: Segments, layer: int, key_values: KeyValues) -> Tensor:
    """`[rows, max_len, 3, heads, head_size]` to `[rows, max_len, hidden]`."""
    query, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)
    visible = key_values.extend(layer, keys, values, segments)
    # The fused kernel's backward pass is slower on a CPU than two batched products are.
    is_learning = query.requires_grad and query.device.type == "cpu"
    attention = _unfused if is_learning else F.scaled_dot_product_attention
    context = attention(query, visible.keys, visible.values, visible.mask)
    return context.transpose(1, 2).flatten(2)


def _unfused(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The same as `F.scaled_dot_product_attention`, with the weights written out."""
    scores = (query * query.shape[-1] ** -0.5) @ keys.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    context: Tensor = scores.softmax(-1) @ values
    return context
