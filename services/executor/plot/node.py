"""One node's rows: its segments as one table.

Knows which rows of which segment count, and copies them out; does not know the node's ancestors,
nor which token asks for which n-gram.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from services.common import ngrams
from services.common.errors import InvalidArgument
from services.common.ngrams import IntArray
from services.executor.plot.hot import HotRows
from services.executor.plot.index import ABSENT, MAX_KEYS, BucketIndex, SlotArray
from services.executor.plot.segment import HalfArray, Segment
from services.executor.plot.staging import Staging, copy_rows


class NodeTable:
    """Rows of one encoder, found by key. Immutable but for which of its rows are hot.

    A row's number is its place in the segments laid one after the other, rows that no longer count
    included: numbers mean the same as long as the node's segments are the same.

    Args:
        encoder_sha256: The encoder that made the rows.
        segments: In the order in which they apply: a later one wins, a removal takes away.
        row_shape: slots, hidden.

    Raises:
        InvalidArgument: A segment's rows have another shape, or there are too many.
    """

    def __init__(
        self, encoder_sha256: str, segments: Sequence[Segment], row_shape: tuple[int, int]
    ) -> None:
        for segment in segments:
            if segment.values is not None and segment.values.shape[1:] != row_shape:
                raise InvalidArgument(
                    f"segment {segment.ref.sha256}", f"rows must have shape {row_shape}"
                )
        self.encoder_sha256 = encoder_sha256
        self.segments = tuple(segments)
        self._values = [segment.values for segment in segments if segment.values is not None]
        self._starts = np.cumsum([0, *(len(values) for values in self._values)])
        if self._starts[-1] >= MAX_KEYS:
            raise InvalidArgument("segments", f"hold {self._starts[-1]} rows, too many for a node")
        keys, numbers = _surviving(segments)
        self.index = BucketIndex(keys, numbers)
        orders = ngrams.order_of(keys)
        self.num_entries = tuple(int((orders == order).sum()) for order in (1, 2, 3))
        self.row_shape = row_shape
        self.hot = HotRows.none(int(self._starts[-1]))

    def __len__(self) -> int:
        """Rows that count."""
        return len(self.index)

    @property
    def num_numbers(self) -> int:
        """Rows in all, those that no longer count included: numbers lie below."""
        return int(self._starts[-1])

    @property
    def row_bytes(self) -> int:
        return 2 * self.row_shape[0] * self.row_shape[1]

    @property
    def size_bytes(self) -> int:
        """Host memory taken beside hot rows and mapped files."""
        return self.index.size_bytes

    def find(self, keys: IntArray) -> SlotArray:
        """Numbers of the rows of int64 `[n]`, or ABSENT: int32 `[n]`."""
        return self.index.find(keys)

    def gather(self, numbers: SlotArray, places: IntArray, staging: Staging) -> None:
        """Bring rows to `places` int64 `[n]` of the staged values, each from its nearest tier.

        Args:
            numbers: int32 `[n]`, each a row's.
        """
        hot = self.hot  # one look: another thread may publish another choice
        hot.count(numbers)
        if hot.rows is not None:
            slots = hot.slots[numbers]
            is_hot = slots != ABSENT
            staging.put_rows(hot.rows, slots[is_hot], places[is_hot])
            numbers, places = numbers[~is_hot], places[~is_hot]
        if len(numbers):
            out, places_out = staging.mapped(places)
            self.read(numbers, out, places_out)
            staging.put_mapped(out, places)

    def read(self, numbers: SlotArray, out: HalfArray, places: IntArray) -> None:
        """Copy rows from the mapped files to `places` of `out` fp16 `[tokens, slots, hidden]`."""
        if len(self._values) == 1:
            copy_rows(self._values[0], numbers, out, places)
            return
        order = np.argsort(numbers, kind="stable")
        numbers, places = numbers[order], places[order]
        bounds = np.searchsorted(numbers, self._starts)
        for segment in np.flatnonzero(np.diff(bounds)):
            part = slice(bounds[segment], bounds[segment + 1])
            rows = numbers[part] - self._starts[segment]
            copy_rows(self._values[segment], rows, out, places[part])

    def entries(self) -> tuple[IntArray, SlotArray]:
        """Keys int64 `[n]` of the rows that count, ascending, and the rows' numbers int32 `[n]`."""
        return _surviving(self.segments)


def _surviving(segments: Sequence[Segment]) -> tuple[IntArray, SlotArray]:
    """Keys that have a row after all segments were applied, ascending, and the rows' numbers."""
    keys = [np.empty(0, np.int64)]
    numbers = [np.empty(0, np.int32)]
    start = 0
    for segment in segments:
        keys.append(segment.keys)
        if segment.values is None:
            numbers.append(np.full(len(segment.keys), ABSENT, np.int32))
        else:
            numbers.append(np.arange(start, start + len(segment.keys), dtype=np.int32))
            start += len(segment.keys)
    every_key, every_number = np.concatenate(keys), np.concatenate(numbers)
    order = np.argsort(every_key, kind="stable")  # equal keys stay in the segments' order
    every_key, every_number = every_key[order], every_number[order]
    is_last = np.r_[every_key[1:] != every_key[:-1], True][: len(every_key)]
    counts = is_last & (every_number != ABSENT)
    return every_key[counts], every_number[counts]
