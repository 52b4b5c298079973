"""Which rows of all nodes are hot: those asked for most, within a budget of bytes.

Knows nodes and how often their rows were used; does not know versions or who asks. Runs on a thread
of its own beside the readers, who never wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from services.common import ngrams
from services.common.ngrams import IntArray
from services.executor.plot.device_table import DeviceNode
from services.executor.plot.hot import HotRows
from services.executor.plot.index import ABSENT, SlotArray
from services.executor.plot.node import NodeTable

_DECAY = np.float32(0.5)  # of the uses, with each choice
_KEY_BYTES = 12  # a device holds int64 key and int32 slot beside each row
_MIN_CHANGE = 0.01  # of a node's hot rows: less is not worth a copy


class HotTier:
    """Chooses hot rows anew whenever it is told to.

    While a node's choice is replaced, the old one and the new one exist side by side.

    Args:
        budget_bytes: Of all hot rows together; 0: no rows are hot.
        device: Where they lie.
        keeps_keys: Whether complete nodes have their keys there too, so that lookups need no host;
            the default is to do so on every device but a CPU.
    """

    def __init__(
        self, budget_bytes: int, device: torch.device, *, keeps_keys: bool | None = None
    ) -> None:
        self._budget = budget_bytes
        self._device = device
        self._keeps_keys = device.type != "cpu" if keeps_keys is None else keeps_keys

    def choose(self, nodes: Sequence[NodeTable]) -> None:
        """Choose among all rows of `nodes`, and publish the choice node by node.

        Rows that were used as often as each other rank by order, short n-grams first: everything
        backs off to them.
        """
        nodes = [node for node in nodes if len(node)]
        if not self._budget or not nodes:
            return
        num_rows = self._budget // (nodes[0].row_bytes + _KEY_BYTES)
        for node in nodes:
            node.hot.collect()
        entries = [node.entries() for node in nodes]
        scores = [_scores(node, *entry) for node, entry in zip(nodes, entries, strict=True)]
        chosen = _top(np.concatenate(scores), num_rows)
        bounds = np.cumsum([0, *map(len, scores)])
        for place, node in enumerate(nodes):
            is_chosen = chosen[bounds[place] : bounds[place + 1]]
            self._publish(node, *entries[place], is_chosen)

    def _publish(
        self, node: NodeTable, keys: IntArray, numbers: SlotArray, is_chosen: NDArray[np.bool_]
    ) -> None:
        old = node.hot
        uses = np.zeros(node.num_numbers, np.float32) if old.uses is None else old.uses
        uses *= _DECAY
        picked = numbers[is_chosen]
        num_kept = int((old.slots[picked] != ABSENT).sum())
        num_changed = max(len(picked), len(old)) - num_kept
        is_complete = len(picked) == len(node)
        if old.uses is not None and (
            num_changed <= _MIN_CHANGE * len(old) and is_complete == (len(old) == len(node))
        ):
            return
        if not len(picked):
            node.hot = HotRows(HotRows.none(node.num_numbers).slots, uses=uses)
            return
        picked = np.sort(picked)  # mapped files are read from front to back
        slots = np.full(node.num_numbers, ABSENT, np.int32)
        slots[picked] = np.arange(len(picked), dtype=np.int32)
        rows = torch.empty((len(picked), *node.row_shape), dtype=torch.float16)
        node.read(picked, rows.numpy(), np.arange(len(picked)))
        on_device = rows.to(self._device)
        device_node = None
        if self._keeps_keys and is_complete:
            device_node = DeviceNode(
                torch.from_numpy(keys).to(self._device),
                torch.from_numpy(slots[numbers]).to(self._device),
                on_device,
                torch.zeros(len(picked), dtype=torch.int32, device=self._device),
            )
        node.hot = HotRows(slots, on_device, uses, device_node)


def _scores(node: NodeTable, keys: IntArray, numbers: SlotArray) -> NDArray[np.float32]:
    """What ranks a node's rows, float32 `[n]`."""
    tie_break = (ngrams.MAX_ORDER - ngrams.order_of(keys)).astype(np.float32)
    tie_break /= 1 << 12
    return tie_break if node.hot.uses is None else node.hot.uses[numbers] + tie_break


def _top(scores: NDArray[np.float32], num: int) -> NDArray[np.bool_]:
    """A mask of the `num` highest scores, of equal ones the first."""
    if num >= len(scores):
        return np.ones(len(scores), np.bool_)
    if num < 1:
        return np.zeros(len(scores), np.bool_)
    bound = np.partition(scores, len(scores) - num)[len(scores) - num]
    is_top: NDArray[np.bool_] = scores > bound
    equal = np.flatnonzero(scores == bound)
    is_top[equal[: num - int(is_top.sum())]] = True
    return is_top
