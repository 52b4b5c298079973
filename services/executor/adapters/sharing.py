"""One store of adapters under several bases that share their layers.

Knows who uses a store; does not know what bases are. A model's key names its base, so that models
of all of them lie in the store side by side.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

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

    def share(self, on_close: Callable[[], object] = lambda: None) -> StoreShare:
        """A further user, whose `on_close` is called once it has closed."""
        share = StoreShare(self, on_close)
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

    def __init__(self, shared: SharedStore, on_close: Callable[[], object]) -> None:
        self._shared = shared
        self._on_close = on_close
        store = shared.store
        self.prefetch = store.prefetch
        self.is_ready = store.is_ready
        self.acquire = store.acquire
        self.release = store.release
        self.forget = store.forget
        self.resident_digests = store.resident_digests
        self.held_digests = store.held_digests

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
