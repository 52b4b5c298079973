"""Heavy hitters of a stream of keys in bounded memory.

Knows keys and counts; does not know what a key stands for. Misra and Gries' summary (1982) on
sorted arrays, merged as in Agarwal et al., Mergeable Summaries (PODS 2012), section 2: a batch is
counted exactly, added, and what is then too long is cut by the first count that does not fit.
"""

from __future__ import annotations

import numpy as np

from services.common.ngram_counts import merge_counts
from services.common.ngrams import IntArray


class HeavyHitters:
    """The most frequent keys of a stream.

    A count is never too high, and too low by at most `error`, itself at most the stream's length
    divided by `capacity` + 1: a key that came more often than that is there.

    Args:
        capacity: Keys kept at most.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.keys = np.empty(0, np.int64)
        self.counts = np.empty(0, np.int64)
        self.error = 0

    def __len__(self) -> int:
        return len(self.keys)

    def add(self, keys: IntArray, counts: IntArray) -> None:
        """Count keys, int64 `[n]`, each as often as told."""
        self.keys, self.counts = merge_counts([self.keys, keys], [self.counts, counts])
        self.shrink(self.capacity)

    def shrink(self, num_keys: int) -> None:
        """Keep at most this many keys."""
        if len(self.keys) <= num_keys:
            return
        # The count of the first that does not fit: all are charged it, and stay with what is left.
        place = len(self.counts) - num_keys - 1
        charge = int(np.partition(self.counts, place)[place])
        is_kept = self.counts > charge
        self.keys, self.counts = self.keys[is_kept], self.counts[is_kept] - charge
        self.error += charge
