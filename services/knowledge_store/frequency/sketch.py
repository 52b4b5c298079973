"""Decayed counts of the n-grams that came most often, in bounded memory.

Knows one stream of keys; does not know tenants, domains or clocks (who decays it says by how much).

Beyond its capacity it is a Misra-Gries summary as mergeable summaries merge (Agarwal et al., PODS
2012, section 3): the largest counts stay, each less by the largest that goes. A weight is then
below the true one by at most `error`, which is at most the mass / (capacity + 1).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from services.common.sorted_keys import NONE, FloatArray, IntArray, added_up, contains

# An n-gram that weighs less is forgotten: it came once, five half-lives ago.
_FORGOTTEN = 1 / 32


@dataclass(frozen=True)
class Sketch:
    """Counts; adding and decaying give a new one.

    Attributes:
        keys: int64 `[n]`, ascending.
        weights: float64 `[n]`, decayed occurrences.
        num_tokens: Decayed tokens, those of n-grams not named here included.
        error: What a weight may be short of.
    """

    keys: IntArray = field(default_factory=lambda: NONE)
    weights: FloatArray = field(default_factory=lambda: np.empty(0))
    num_tokens: float = 0.0
    error: float = 0.0

    def decayed(self, factor: float) -> Sketch:
        """All of it times `factor`, at most 1."""
        if factor >= 1:
            return self
        weights = self.weights * factor
        stays = weights >= _FORGOTTEN
        return Sketch(
            self.keys[stays], weights[stays], self.num_tokens * factor, self.error * factor
        )

    def added(self, keys: IntArray, counts: FloatArray, num_tokens: float, capacity: int) -> Sketch:
        """With occurrences added: keys `[m]` in any order, counts `[m]`, positive."""
        new_keys, new_counts = added_up(keys, counts)
        is_known = contains(self.keys, new_keys)
        weights = self.weights.copy()
        weights[np.searchsorted(self.keys, new_keys[is_known])] += new_counts[is_known]
        positions = np.searchsorted(self.keys, new_keys[~is_known])
        held = Sketch(
            np.insert(self.keys, positions, new_keys[~is_known]),
            np.insert(weights, positions, new_counts[~is_known]),
            self.num_tokens + num_tokens,
            self.error,
        )
        # Twice the room, so that cutting back is rare and costs little for each key.
        return held.cut(capacity) if len(held.keys) > 2 * capacity else held

    def cut(self, capacity: int) -> Sketch:
        """At most `capacity` keys."""
        if len(self.keys) <= capacity:
            return self
        position = len(self.keys) - capacity - 1
        largest_gone = float(np.partition(self.weights, position)[position])
        stays = self.weights > largest_gone
        return Sketch(
            self.keys[stays],
            self.weights[stays] - largest_gone,
            self.num_tokens,
            self.error + largest_gone,
        )
