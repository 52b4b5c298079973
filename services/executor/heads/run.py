"""Heads of a mixed batch: different tasks, depths and label counts in a few batched products.

Knows hidden states and head specs; the answer's meaning (softmax, labels, spans) is the gateway's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from services.common.adapter_format import Reads
from services.executor.adapters.activations import activate
from services.executor.adapters.arena import Arena
from services.executor.adapters.groups import RowGroup
from services.executor.adapters.packing import HEAD, HEAD_BIAS, Table
from services.executor.adapters.slots import Slot, gather
from services.executor.models.segments import Segments

Pool = Callable[[Tensor], Tensor]


class BatchHeads:
    """Computes heads out of the arena that holds their rows.

    Args:
        pool: The base's pooler, `[rows, hidden]` to the same; raises if there is none.
    """

    def __init__(self, arena: Arena, pool: Pool) -> None:
        self._arena = arena
        self._pool = pool

    def run(self, slots: Sequence[Slot], hidden: Tensor, segments: Segments) -> list[Tensor]:
        """One float32 output a row.

        Args:
            slots: Each row's adapter.
            hidden: `[tokens, hidden]` of the last layer.

        Returns:
            Raw logits `[labels]`, or `[tokens, labels]` for a token task, or an embedding
            `[hidden]`. Views of at most two tensors on the device.

        Raises:
            FailedPrecondition: A head needs the base's pooler and it has none.
        """
        outputs: dict[int, Tensor] = {}
        by_token = [i for i, s in enumerate(slots) if s.head.reads is Reads.TOKENS]
        by_row = [i for i, s in enumerate(slots) if s.head.reads is not Reads.TOKENS]
        if by_row:
            inputs = self._row_inputs([slots[i] for i in by_row], by_row, hidden, segments)
            embeddings: list[tuple[int, int]] = []
            logits: list[tuple[int, int]] = []
            for place, row in enumerate(by_row):
                (logits if slots[row].head.layers else embeddings).append((place, row))
            outputs |= _embeddings(slots, embeddings, inputs)
            if logits:
                picked = inputs.index_select(0, _index([p for p, _ in logits], inputs.device))
                rows = [row for _, row in logits]
                scores = self._dense([slots[row] for row in rows], picked[:, None])[:, 0]
                outputs |= {
                    row: own[: slots[row].head.num_outputs]
                    for row, own in zip(rows, scores.unbind(), strict=True)
                }
        if by_token:
            group = RowGroup(segments, [slot.head.reads is Reads.TOKENS for slot in slots])
            scores = self._dense([slots[row] for row in group.rows], group.pad(hidden))
            lengths = [segments.lengths[row] for row in by_token]
            tokens = torch.split(group.segments.unpad(scores), lengths)
            outputs |= {
                row: own[:, : slots[row].head.num_outputs]
                for row, own in zip(by_token, tokens, strict=True)
            }
        return [outputs[row] for row in range(len(slots))]

    def _row_inputs(
        self, slots: Sequence[Slot], rows: Sequence[int], hidden: Tensor, segments: Segments
    ) -> Tensor:
        """`[rows, hidden]`: what each head reads of its row, one vector."""
        index = _index(rows, hidden.device)
        first = hidden.index_select(0, segments.first_tokens.index_select(0, index))
        inputs = first
        reads = [slot.head.reads for slot in slots]
        if Reads.POOLED in reads:
            inputs = _where([r is Reads.POOLED for r in reads], self._pool(first), inputs)
        if Reads.MEAN in reads:
            sums = torch.zeros(
                segments.num_rows, hidden.shape[1], dtype=torch.float32, device=hidden.device
            )
            sums.index_add_(0, segments.row_of_token, hidden.float())
            counts = torch.tensor(segments.lengths, dtype=torch.float32, device=hidden.device)
            means = (sums / counts[:, None]).index_select(0, index)
            inputs = _where([r is Reads.MEAN for r in reads], means, inputs.float())
        return inputs

    def _dense(self, slots: Sequence[Slot], x: Tensor) -> Tensor:
        """`[rows, len, hidden]` through each row's dense layers: float32 `[rows, len, labels]`.

        Heads are aligned at their last layers, so that rows of one depth never wait for others.
        """
        dtype = self._arena.rows.dtype
        x = x.to(dtype)
        for steps_left in range(max(len(s.head.layers) for s in slots) - 1, 0, -1):
            has = [len(slot.head.layers) > steps_left for slot in slots]
            rows = [i for i, present in enumerate(has) if present]
            index = _index(rows, x.device)
            chosen = [slots[row] for row in rows]
            depths = [len(slot.head.layers) - 1 - steps_left for slot in chosen]
            y = self._layer(chosen, depths, x.index_select(0, index), x.shape[-1])
            names = [s.head.layers[d].activation for s, d in zip(chosen, depths, strict=True)]
            x = x.index_copy(0, index, activate(y, names).to(dtype))
        last = [len(slot.head.layers) - 1 for slot in slots]
        width = max(slot.head.num_outputs for slot in slots)
        return self._layer(slots, last, x, width)

    def _layer(self, slots: Sequence[Slot], depths: Sequence[int], x: Tensor, width: int) -> Tensor:
        """`W x + b` of each row's layer: float32 `[rows, len, width]`."""
        hidden = x.shape[-1]
        names = {d: (Table(HEAD, "", d), Table(HEAD_BIAS, "", d)) for d in set(depths)}
        pairs = [(slot.tables, *names[depth]) for slot, depth in zip(slots, depths, strict=True)]
        weights = [tables[weight] for tables, weight, _ in pairs]
        biases = [tables.get(bias) for tables, _, bias in pairs]
        weight = gather(self._arena, weights, hidden)
        if weight is None:
            raise LookupError(HEAD)  # packing writes every layer that a head has
        y = torch.bmm(x, weight.of(0).transpose(1, 2)).float()
        bias = gather(self._arena, biases, width)
        if bias is not None:
            y += bias.of(0).float()
        return y


def _embeddings(
    slots: Sequence[Slot], pairs: Sequence[tuple[int, int]], inputs: Tensor
) -> dict[int, Tensor]:
    """The outputs of rows without a head, by row; `pairs` are (place in inputs, row)."""
    if not pairs:
        return {}
    vectors = inputs.index_select(0, _index([p for p, _ in pairs], inputs.device)).float()
    normalize = [slots[row].head.normalize for _, row in pairs]
    if any(normalize):
        vectors = _where(normalize, F.normalize(vectors, dim=-1), vectors)
    return {row: vectors[i] for i, (_, row) in enumerate(pairs)}


def _index(rows: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device=device)


def _where(takes_first: Sequence[bool], first: Tensor, second: Tensor) -> Tensor:
    if all(takes_first):
        return first
    mask = torch.tensor(takes_first, device=first.device)[:, None]
    return torch.where(mask, first, second)
