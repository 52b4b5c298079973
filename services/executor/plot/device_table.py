"""A whole table version in device memory: keys and rows, looked up without asking the host.

Knows tensors; does not know segments or files. Every shape is known beforehand, so nothing waits
for the device: each node is searched for every token, and what was found first stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.common import ngrams
from services.common.ngrams import IntArray
from services.executor.plot.staging import Staging

_RIGHT = ngrams.SLOT_MASK
_CENTRE = ngrams.SLOT_MASK << ngrams.SLOT_BITS
_LEFT = ngrams.SLOT_MASK << 2 * ngrams.SLOT_BITS

# As in `table.py`, on tensors.
_BACKOFF: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda keys: keys,
    lambda keys: keys & ~_RIGHT,
    lambda keys: keys & ~_LEFT,
    lambda keys: keys & _CENTRE,
)


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A node's rows on the device.

    Attributes:
        keys: int64 `[n]`, ascending, at least one.
        slots: int32 `[n]`: where each key's row lies.
        rows: fp16 `[rows, slots, hidden]`.
        uses: int32 `[rows]`: how often each was asked for and nobody has taken note of yet.
    """

    keys: Tensor
    slots: Tensor
    rows: Tensor
    uses: Tensor

    def take_uses(self) -> NDArray[np.int32]:
        """How often each row was asked for since the last call, int32 `[rows]`. Waits for the
        device; what is counted meanwhile stays for the next call."""
        taken = self.uses.to("cpu", copy=True)
        self.uses.sub_(taken.to(self.uses.device))
        counts: NDArray[np.int32] = taken.numpy()
        return counts


class DeviceTable:
    """Nodes of a path under back-off, all rows on the device.

    Args:
        nodes: From the leaf to the root.
    """

    def __init__(self, nodes: Sequence[DeviceNode]) -> None:
        self._nodes = tuple(nodes)

    def retrieve(self, keys: IntArray, places: IntArray, staging: Staging, results: Tensor) -> None:
        """Rows for some of a batch's tokens, queued.

        Args:
            keys: int64 `[n]`: the tokens' fullest n-grams.
            places: int64 `[n]`: the tokens.
            results: uint8 `[tokens]` on the device: set to the orders found.
        """
        wanted = staging.to_device(keys)
        nodes, slots, orders = self._find(wanted)
        values = torch.zeros(
            (len(keys), *staging.values.shape[1:]), dtype=torch.float16, device=staging.device
        )
        for place, node in enumerate(self._nodes):
            is_here = nodes == place
            slots_here = torch.where(is_here, slots, 0)
            node.uses.index_add_(0, slots_here, is_here.to(torch.int32))
            rows = node.rows.index_select(0, slots_here)
            values = torch.where(is_here[:, None, None], rows, values)
        tokens = staging.to_device(places)
        staging.values.index_copy_(0, tokens, values)
        results.index_copy_(0, tokens, orders)

    def _find(self, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Node int16, slot int32 and order uint8 of each key's row, `[n]`; -1, 0 and 0 if none."""
        nodes = torch.full_like(keys, -1, dtype=torch.int16)
        slots = torch.zeros_like(keys, dtype=torch.int32)
        orders = torch.zeros_like(keys, dtype=torch.uint8)
        for candidate in _BACKOFF:
            wanted = candidate(keys)
            order = _order_of(wanted)
            for place, node in enumerate(self._nodes):
                found = torch.searchsorted(node.keys, wanted).clamp_(max=len(node.keys) - 1)
                is_new = (node.keys[found] == wanted) & (nodes < 0)
                nodes = torch.where(is_new, place, nodes)
                slots = torch.where(is_new, node.slots[found], slots)
                orders = torch.where(is_new, order, orders)
        return nodes, slots, orders


def _order_of(keys: Tensor) -> Tensor:
    """How many slots of each key are present: uint8 `[n]`."""
    present = (keys & _LEFT != 0).to(torch.uint8)
    return present + (keys & _CENTRE != 0) + (keys & _RIGHT != 0)
