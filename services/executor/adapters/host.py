"""The host tier: packed adapters in ordinary (on CUDA: pinned) memory, least recently used out."""

from __future__ import annotations

from collections import OrderedDict

from services.executor.adapters.packing import Packed


class HostTier:
    """Packed adapters by digest, within a budget. Not thread-safe: the store's lock guards it.

    Content decides, not ownership: two models of the same digest share the immutable host copy.

    Args:
        budget_bytes: Bytes at most. An adapter larger than that is not kept.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._packed: OrderedDict[str, Packed] = OrderedDict()
        self.size_bytes = 0

    def __contains__(self, digest: object) -> bool:
        return digest in self._packed

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(self._packed)

    def get(self, digest: str) -> Packed | None:
        """The adapter, now the most recently used."""
        packed = self._packed.get(digest)
        if packed is not None:
            self._packed.move_to_end(digest)
        return packed

    def put(self, digest: str, packed: Packed) -> None:
        """Keep an adapter, dropping others as the budget demands."""
        self.drop(digest)
        if packed.size_bytes > self._budget:
            return
        while self.size_bytes + packed.size_bytes > self._budget:
            self.drop(next(iter(self._packed)))
        self._packed[digest] = packed
        self.size_bytes += packed.size_bytes

    def drop(self, digest: str) -> None:
        """Forget an adapter, if it is there."""
        packed = self._packed.pop(digest, None)
        if packed is not None:
            self.size_bytes -= packed.size_bytes
