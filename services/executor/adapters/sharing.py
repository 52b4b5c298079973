"""One store of adapters under several bases that share their layers.

Knows who uses a store; does not know what bases are. A model's key names its base, so that models
of all of them lie in the store side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from weakref import WeakSet

from services.common.errors import InvalidArgument
from services.executor.adapters.packing import HEAD, HEAD_BIAS
from services.executor.adapters.slots import Key, Slot
from services.executor.adapters.store import AdapterStore
from services.executor.models.bypass import Bypass
from services.executor.models.segments import Segments


class SharedStore:
    """Counts a store's users: the last that closes closes it.

    Args:
        on_close: Called after the store has been closed.
    """

    def __init__(self, store: AdapterStore, on_close: Callable[[], object]) -> None:
        self.store = store
        self._on_close = on_close
        self._lock = threading.Lock()
        self._pins: dict[StoreShare, frozenset[Key]] = {}

    def share(
        self, *, split_layer: int = 0, on_close: Callable[[], object] = lambda: None
    ) -> StoreShare:
        """A further user.

        Args:
            split_layer: It takes no adapter that changes layers below this one.
            on_close: Called once it has closed.
        """
        share = StoreShare(self, split_layer, on_close)
        with self._lock:
            self._pins[share] = frozenset()
        return share

    def pin(self, share: StoreShare, keys: frozenset[Key]) -> None:
        """Pin what any user pins."""
        with self._lock:
            self._pins[share] = keys
            self.store.pin(frozenset().union(*self._pins.values()))

    def leave(self, share: StoreShare) -> None:
        """A user is gone, and so are its pins."""
        with self._lock:
            if self._pins.pop(share, None) is None:
                return
            is_last = not self._pins
            if not is_last:
                self.store.pin(frozenset().union(*self._pins.values()))
        if is_last:
            self.store.close()
            self._on_close()


class StoreShare:
    """A base's part of a store. Implements `engine.interfaces.Adapters`."""

    def __init__(
        self, shared: SharedStore, split_layer: int, on_close: Callable[[], object]
    ) -> None:
        self._shared = shared
        self._split_layer = split_layer
        self._on_close = on_close
        self._checked: WeakSet[Slot] = WeakSet()
        store = shared.store
        self.prefetch = store.prefetch
        self.is_ready = store.is_ready
        self.release = store.release
        self.forget = store.forget
        self.resident_digests = store.resident_digests
        self.held_digests = store.held_digests

    def acquire(self, key: Key) -> Slot | None:
        """As `AdapterStore.acquire`.

        Raises:
            InvalidArgument: The adapter changes layers that this base looks up. Pushing refuses it
                there; this holds whoever asks.
        """
        slot = self._shared.store.acquire(key)
        if slot is not None and slot not in self._checked:
            if _changes_below(slot, self._split_layer):
                self._shared.store.release(slot)
                raise InvalidArgument(
                    "key.digest",
                    f"version {key.digest} changes layers below {self._split_layer}",
                    reason="BELOW_SPLIT",
                )
            self._checked.add(slot)
        return slot

    def bypass(self, slots: Sequence[Slot], segments: Segments) -> Bypass:
        """As `AdapterStore.bypass`."""
        return self._shared.store.bypass(slots, segments)

    def pin(self, keys: frozenset[Key]) -> None:
        """As `AdapterStore.pin`, of this base's models."""
        self._shared.pin(self, keys)

    def close(self) -> None:
        """Use the store no longer; it stops loading with the last of its users."""
        self._shared.leave(self)
        self._on_close()


def _changes_below(slot: Slot, layer: int) -> bool:
    """Whether the adapter does anything in the layers below, or to the embeddings."""
    below = (
        numbers[:layer].any()
        for table, numbers in slot.tables.items()
        if table.kind not in (HEAD, HEAD_BIAS)
    )
    return any(below) or any(place < layer for place, _ in slot.bottlenecks)
