"""Intervals of means and ratios over texts that were measured together.

Knows paired samples and the groups they come in; does not know what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.report import Estimate

_RESAMPLES = 2_000
_SHARE = 0.95

FloatArray = NDArray[np.float64]


def ratio_of_sums(above: ArrayLike, below: ArrayLike, *, seed: int = 0) -> Estimate:
    """Sum over sum, with the 95 % interval of a paired bootstrap over the samples `[n]`."""
    tops, bottoms = np.asarray(above, np.float64), np.asarray(below, np.float64)
    weights = _multiplicities(len(tops), seed)
    drawn = (weights @ tops) / (weights @ bottoms)
    return _estimate(float(tops.sum() / bottoms.sum()), drawn)


def difference_of_ratios(
    first: ArrayLike, second: ArrayLike, below: ArrayLike, *, seed: int = 0
) -> Estimate:
    """(sum of first - sum of second) over the sum of `below`, paired as above."""
    tops = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    return ratio_of_sums(tops, below, seed=seed)


@dataclass(frozen=True)
class Drawn:
    """A value and what it was in each resample, `[resamples]`."""

    value: float
    draws: FloatArray

    @property
    def estimate(self) -> Estimate:
        """With its 95 % interval."""
        return _estimate(self.value, self.draws)


def nested(
    values: ArrayLike, sizes: ArrayLike, groups: ArrayLike, runs: ArrayLike, *, seed: int = 0
) -> Drawn:
    """A mean over texts that several training runs answered, each text one run's.

    Runs are drawn with replacement, then groups of texts inside each run drawn: the interval
    covers chance in training as well as in texts. Equal arguments but for `values` are drawn
    alike, so that differences of the values are paired.

    Args:
        values: What each text scored, summed over its parts, `[n]`.
        sizes: Parts of each text, `[n]`; ones if the text is scored as a whole.
        groups: int, what belongs together, `[n]`: a film, a document.
        runs: int, which run answered, `[n]`.
    """
    tops, bottoms, run_of_group = _by_group(values, sizes, groups, runs)
    chance = np.random.default_rng(seed)
    distinct = np.unique(run_of_group)
    members = {run: np.flatnonzero(run_of_group == run) for run in distinct}
    drawn = np.empty(_RESAMPLES)
    for number in range(_RESAMPLES):
        picked = np.concatenate(
            [
                chance.choice(members[run], len(members[run]))
                for run in chance.choice(distinct, len(distinct))
            ]
        )
        drawn[number] = tops[picked].sum() / bottoms[picked].sum()
    return Drawn(float(tops.sum() / bottoms.sum()), drawn)


def mean_of(parts: Sequence[Drawn]) -> Drawn:
    """The mean of values that were drawn independently of each other."""
    value = float(np.mean([part.value for part in parts]))
    return Drawn(value, np.mean([part.draws for part in parts], axis=0))


def _by_group(
    values: ArrayLike, sizes: ArrayLike, groups: ArrayLike, runs: ArrayLike
) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
    """Sums of each group within each run, and the run of each."""
    pairs = np.stack([np.asarray(runs, np.int64), np.asarray(groups, np.int64)], axis=1)
    distinct, inverse = np.unique(pairs, axis=0, return_inverse=True)
    inverse = inverse.reshape(-1)
    tops = np.bincount(inverse, np.asarray(values, np.float64), len(distinct))
    bottoms = np.bincount(inverse, np.asarray(sizes, np.float64), len(distinct))
    return tops.astype(np.float64), bottoms.astype(np.float64), distinct[:, 0]


def _multiplicities(size: int, seed: int) -> FloatArray:
    """How often each of `size` samples is drawn in each resample, `[resamples, size]`."""
    chance = np.random.default_rng(seed)
    drawn = chance.integers(size, size=(_RESAMPLES, size))
    rows = np.arange(_RESAMPLES)[:, None]
    counts = np.bincount((rows * size + drawn).reshape(-1), minlength=_RESAMPLES * size)
    return counts.reshape(_RESAMPLES, size).astype(np.float64)


def _estimate(value: float, drawn: FloatArray) -> Estimate:
    tail = (1 - _SHARE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))
