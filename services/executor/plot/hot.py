"""The rows of a node that are asked for most, copied into one piece of memory.

Knows one node's row numbers; does not know keys or segments. On a CPU the copy saves page faults
and outlives the page cache; on CUDA it lies in device memory and saves the transfer.

A choice of hot rows never changes once it is published: a new one takes its place, and who still
reads the old one keeps it. So no reader waits, and none sees a row move.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from services.executor.plot.device_table import DeviceNode
from services.executor.plot.index import ABSENT, SlotArray

UseArray = NDArray[np.float32]


class HotRows:
    """Hot rows of one node, and how often each of its rows was asked for.

    Attributes:
        slots: int32 `[numbers]`: where a row lies in `rows`, in the numbers' order, or ABSENT.
        rows: fp16 `[hot rows, slots, hidden]`, on the host or a device; None if there are none.
        uses: float32 `[numbers]`, carried from choice to choice; None if nobody counts.
        on_device: All of the node's rows with their keys, if all are hot, on a device.
    """

    def __init__(
        self,
        slots: SlotArray,
        rows: Tensor | None = None,
        uses: UseArray | None = None,
        on_device: DeviceNode | None = None,
    ) -> None:
        self.slots = slots
        self.rows = rows
        self.uses = uses
        self.on_device = on_device

    @classmethod
    def none(cls, num_numbers: int) -> HotRows:
        """No row is hot and none is counted."""
        return cls(np.broadcast_to(np.int32(ABSENT), num_numbers))

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    @property
    def size_bytes(self) -> int:
        return 0 if self.rows is None else self.rows.numel() * self.rows.element_size()

    def count(self, numbers: SlotArray) -> None:
        """Remember that these rows were asked for. Threads may lose each other's counts."""
        if self.uses is not None:
            np.add.at(self.uses, numbers, np.float32(1))

    def collect(self) -> None:
        """Bring to `uses` what lookups on the device counted there."""
        if self.uses is not None and self.on_device is not None:
            # Rows lie in the order of their numbers.
            self.uses[self.slots != ABSENT] += self.on_device.take_uses()
