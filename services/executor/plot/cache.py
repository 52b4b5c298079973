"""Rows that were computed because no table had them, kept for a while: one cache a tenant.

Knows keys and rows; does not know tables or who computes. No tenant's request can find what another
tenant's computed, not even by its time.

A cache is set-associative, so that looking up and taking in are a few array operations: a key's
hash names a set of eight places, and the one least recently used makes room.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict

import numpy as np

from services.common.ngrams import IntArray
from services.executor.plot.index import WIDTH, bucket_of, match, slots_of
from services.executor.plot.staging import HalfArray


class RowCache:
    """Computed rows of one encoder for one tenant. Not thread-safe: `RowCaches` guards it.

    Args:
        num_rows: Rows at most, rounded up to a multiple of eight. Memory is taken as it fills.
        row_shape: slots, hidden.
    """

    def __init__(self, num_rows: int, row_shape: tuple[int, int]) -> None:
        self._num_sets = max(1, -(-num_rows // WIDTH))
        self._keys = np.zeros((self._num_sets, WIDTH), np.int64)
        self._last_used = np.zeros((self._num_sets, WIDTH), np.int64)
        self._rows = np.empty((self._num_sets * WIDTH, *row_shape), np.float16)
        self._clock = 0

    def find(self, keys: IntArray) -> tuple[IntArray, HalfArray]:
        """Which of `keys` int64 `[n]` are here, int64 `[m]`, and their rows, a copy."""
        self._clock += 1
        sets = bucket_of(keys, self._num_sets)
        matches = match(np.take(self._keys, sets, axis=0), keys)
        hits = np.flatnonzero(matches)
        places = sets[hits] * WIDTH + slots_of(matches[hits])
        self._last_used.reshape(-1)[places] = self._clock
        return hits, np.take(self._rows, places, axis=0)

    def put(self, keys: IntArray, rows: HalfArray) -> None:
        """Take in rows of distinct keys that are not here. What finds its set full of rows of the
        same call is not kept."""
        self._clock += 1
        sets = bucket_of(keys, self._num_sets)
        waiting = np.arange(len(keys))
        for _ in range(WIDTH):
            if not len(waiting):
                return
            # One key a set and turn: those of a turn never write to one place.
            _, first = np.unique(sets[waiting], return_index=True)
            chosen = waiting[first]
            oldest = self._last_used[sets[chosen]].argmin(axis=1)
            places = sets[chosen] * WIDTH + oldest
            self._keys.reshape(-1)[places] = keys[chosen]
            self._last_used.reshape(-1)[places] = self._clock
            self._rows[places] = rows[chosen]
            waiting = np.delete(waiting, first)


class RowCaches:
    """The tenants' caches. Methods may be called from any thread.

    Args:
        row_shape: slots, hidden.
        total_bytes: Rows of all tenants together; beyond it the tenant of most caches, of equal
            ones that least recently served, loses the one it has not used for longest.
        tenant_bytes: Rows of one tenant and encoder.
    """

    def __init__(self, row_shape: tuple[int, int], *, total_bytes: int, tenant_bytes: int) -> None:
        self._row_shape = row_shape
        self._num_rows = tenant_bytes // (2 * row_shape[0] * row_shape[1])
        self._max_caches = total_bytes // tenant_bytes if tenant_bytes else 0
        self._caches: OrderedDict[tuple[str, str], RowCache] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, tenant: str, encoder_sha256: str, keys: IntArray) -> tuple[IntArray, HalfArray]:
        """As `RowCache.find`."""
        with self._lock:
            cache = self._caches.get((tenant, encoder_sha256))
            if cache is None:
                return np.empty(0, np.int64), np.empty((0, *self._row_shape), np.float16)
            self._caches.move_to_end((tenant, encoder_sha256))
            return cache.find(keys)

    def put(self, tenant: str, encoder_sha256: str, keys: IntArray, rows: HalfArray) -> None:
        """As `RowCache.put`."""
        if not self._max_caches or not self._num_rows:
            return
        owner = (tenant, encoder_sha256)
        with self._lock:
            cache = self._caches.get(owner)
            if cache is None:
                cache = self._caches[owner] = RowCache(self._num_rows, self._row_shape)
                if len(self._caches) > self._max_caches:
                    self._drop_one()
            # Another thread may have computed the same rows meanwhile.
            known, _ = cache.find(keys)
            is_new = np.ones(len(keys), np.bool_)
            is_new[known] = False
            cache.put(keys[is_new], rows[is_new])

    def _drop_one(self) -> None:
        """Make room, so that a tenant of many encoders costs no other its cache."""
        num_of = Counter(tenant for tenant, _ in self._caches)
        most = max(num_of.values())
        del self._caches[next(owner for owner in self._caches if num_of[owner[0]] == most)]
