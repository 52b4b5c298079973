"""Finding keys: where in a node's rows each n-gram of a batch is, or that it is not there.

Knows int64 keys and their numbers only; does not know nodes, paths or what the numbers point to.

`SortedIndex` is the simple way, binary search; the tests' oracle, and the overflow of the fast one.
`BucketIndex` is what serves. Its keys lie in buckets of eight, half full, one cache line each; the
top bits of a multiplicative hash name the bucket. So a query costs one cache miss whatever the
table's size, a hit a second one for its number, and all queries of a chunk wait for theirs at the
same time. Measured (`make bench-plot`): binary search is bound by a chain of dependent misses, and
sorting the queries first costs more than the bucket search as a whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.common.ngrams import IntArray

SlotArray = NDArray[np.int32]

ABSENT = -1
MAX_KEYS = 1 << 31  # numbers are int32

WIDTH = 8  # keys a bucket can hold: 64 bytes
_LOAD = 4  # keys a bucket holds on average: Poisson leaves 1 % to the overflow
KEY_BYTES = 24  # memory a key takes, with its share of empty places
_CHUNK = 8192  # queries at a time: their temporaries stay in the second-level cache
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio (Knuth, TAOCP 3, 6.4)
_HALF = np.uint64(32)
_SLOT_BITS = 8  # numpy's booleans take a byte


def bucket_of(keys: IntArray, num_buckets: int) -> IntArray:
    """A bucket for each key, int64 `[n]`: the hash's upper half, scaled to the number of buckets
    (Lemire 2019, "Fast random integer generation in an interval", section 3)."""
    mixed = np.multiply(np.ascontiguousarray(keys).view(np.uint64), _MULTIPLIER)
    mixed >>= _HALF
    mixed *= np.uint64(num_buckets)
    mixed >>= _HALF
    return mixed.view(np.int64)


def match(candidates: IntArray, queries: IntArray) -> NDArray[np.uint64]:
    """Which of eight keys equals each query: 256 to the power of its place, or 0: uint64 `[n]`.

    Args:
        candidates: int64 `[n, 8]`; at most one of a row equals the query.
        queries: int64 `[n]`.
    """
    equal: NDArray[np.bool_] = candidates == queries[:, None]
    return equal.view(np.uint64)[:, 0]


def slots_of(matches: NDArray[np.uint64]) -> IntArray:
    """The places, int64 `[n]`, that `match` found; none of `matches` is 0."""
    # log2 of a power of 256 is exact, and so is the division.
    return np.log2(matches.astype(np.float64)).astype(np.int64) // _SLOT_BITS


class SortedIndex:
    """Binary search in ascending keys.

    Args:
        keys: int64 `[n]`, ascending, distinct.
        numbers: int32 `[n]`; None is 0 … n - 1.
    """

    def __init__(self, keys: IntArray, numbers: SlotArray | None = None) -> None:
        self._keys = keys
        self._numbers = np.arange(len(keys), dtype=np.int32) if numbers is None else numbers

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def size_bytes(self) -> int:
        return self._keys.nbytes + self._numbers.nbytes

    def find(self, queries: IntArray) -> SlotArray:
        """Each query's number, or ABSENT: int32 `[q]` for int64 `[q]`."""
        if not len(self._keys):
            return np.full(len(queries), ABSENT, np.int32)
        places = np.searchsorted(self._keys, queries)
        np.minimum(places, len(self._keys) - 1, out=places)
        is_hit = self._keys[places] == queries
        return np.where(is_hit, self._numbers[places], np.int32(ABSENT))


class BucketIndex:
    """Hashed buckets; same contract as `SortedIndex`.

    Keys must not be 0, which marks what is empty; no n-gram's key is. Keys that no longer fit in
    their bucket lie in a sorted overflow, searched only for what is missing from a full bucket: so
    keys chosen to share a bucket make it slower at worst, never wrong.
    """

    def __init__(self, keys: IntArray, numbers: SlotArray | None = None) -> None:
        if len(keys) >= MAX_KEYS:
            raise ValueError(f"{len(keys)} keys are more than {MAX_KEYS - 1}")
        if numbers is None:
            numbers = np.arange(len(keys), dtype=np.int32)
        self._num_keys = len(keys)
        self._num_buckets = max(1, -(-len(keys) // _LOAD))
        self._buckets = np.zeros((self._num_buckets, WIDTH), np.int64)
        self._numbers = np.full(self._num_buckets * WIDTH, ABSENT, np.int32)
        self._overflow = self._fill(keys, numbers)

    def __len__(self) -> int:
        return self._num_keys

    @property
    def size_bytes(self) -> int:
        return self._buckets.nbytes + self._numbers.nbytes + self._overflow.size_bytes

    def find(self, queries: IntArray) -> SlotArray:
        """Each query's number, or ABSENT: int32 `[q]` for int64 `[q]`."""
        found = np.empty(len(queries), np.int32)
        if not self._num_keys:
            found.fill(ABSENT)
            return found
        for first in range(0, len(queries), _CHUNK):
            self._find(queries[first : first + _CHUNK], found[first : first + _CHUNK])
        return found

    def _find(self, queries: IntArray, found: SlotArray) -> None:
        found.fill(ABSENT)
        buckets = bucket_of(queries, self._num_buckets)
        candidates = np.take(self._buckets, buckets, axis=0)
        matches = match(candidates, queries)
        hits = np.flatnonzero(matches)
        found[hits] = np.take(self._numbers, buckets[hits] * WIDTH + slots_of(matches[hits]))
        if len(self._overflow):
            missing = np.flatnonzero((matches == 0) & (candidates[:, -1] != 0))
            found[missing] = self._overflow.find(queries[missing])

    def _fill(self, keys: IntArray, numbers: SlotArray) -> SortedIndex:
        """Put the keys in their buckets; returns the index of those that did not fit."""
        buckets = bucket_of(keys, self._num_buckets)
        order = np.argsort(buckets, kind="stable")
        buckets = buckets[order]
        is_first = np.r_[True, buckets[1:] != buckets[:-1]][: len(buckets)]
        starts = np.flatnonzero(is_first)
        sizes = np.diff(np.r_[starts, len(buckets)])
        slots = np.arange(len(buckets)) - np.repeat(starts, sizes)
        fits = slots < WIDTH
        places = buckets[fits] * WIDTH + slots[fits]
        self._buckets.reshape(-1)[places] = keys[order[fits]]
        self._numbers[places] = numbers[order[fits]]
        rest = np.sort(order[~fits])  # keys are ascending
        return SortedIndex(keys[rest], numbers[rest])
