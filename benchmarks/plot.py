"""What looking rows up costs, and what it saves, on this machine's CPU.

Finding keys alone, along a path of three nodes, and copying rows, each against the simple way and
checked against it first; then a batch through a split MiniLM against the same batch through the
whole one, at the hit rates of `plot_batch`. One thread for everything that is a lookup.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import plot_batch, plot_data, report
from benchmarks.chart import Line, line_chart
from benchmarks.report import Goal, Report
from services.executor.plot.index import BucketIndex, SortedIndex
from services.executor.plot.staging import Staging, copy_rows
from services.executor.plot.table import Result

IntArray = NDArray[np.int64]

SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
HIT_RATES = (1.0, 0.5, 0.0)
NUM_QUERIES = 1_000_000
REPEATS = 11
BATCH_TOKENS = 2048
MAPPED_ROWS = 1_300_000  # 1 GB
COLD_ROWS = 20_000
ROW_SHAPE = (1, 384)
CPU = torch.device("cpu")


class Questions:
    """Random queries to one table, drawn anew for every repeat."""

    def __init__(self, keys: IntArray, chance: np.random.Generator) -> None:
        self._keys = keys
        self._chance = chance

    def draw(self, hit_rate: float) -> IntArray:
        """In random order; this share is in the table."""
        hits = self._keys[self._chance.integers(0, len(self._keys), NUM_QUERIES)]
        others = self._chance.integers(1, 1 << 63, NUM_QUERIES)
        return np.where(self._chance.random(NUM_QUERIES) < hit_rate, hits, others)

    def sampler(self, find: Callable[[IntArray], object], hit_rate: float) -> Callable[[], float]:
        """Measures itself once: millions of queries a second."""

        def sample() -> float:
            asked = self.draw(hit_rate)
            started = time.perf_counter()
            find(asked)
            return NUM_QUERIES / (time.perf_counter() - started) / 1e6

        return sample


def sorted_first(simple: SortedIndex, asked: IntArray) -> NDArray[np.int32]:
    """Binary search in the order of the queries, which is kind to caches."""
    order = np.argsort(asked)
    found = np.empty(len(asked), np.int32)
    found[order] = simple.find(asked[order])
    return found


def lookup(result: Report) -> None:
    """Keys only, one table, random queries."""
    lines = [Line(f"{rate:.0%} hits") for rate in HIT_RATES]
    for size in SIZES:
        samples = lookup_samples(size)
        for rate, line in zip(HIT_RATES, lines, strict=True):
            speed = report.median(samples[f"{rate:.0%}"])
            line.add(size, speed.value)
            goal = Goal(">=", 5.0) if size == SIZES[-1] else None
            result.add(f"lookup, {size:.0e} keys, {rate:.0%} hits", speed, "M n-grams/s", goal)
    # Of the largest table.
    result.add("A/A: lookup, 100% hits", report.ratio(samples["again"], samples["100%"]), "")
    result.add("binary search, 100% hits", report.median(samples["binary"]), "M n-grams/s")
    result.add("queries sorted first, 100% hits", report.median(samples["sorted"]), "M n-grams/s")
    chart = line_chart("Lookup on one core", "keys in the table", "M n-grams a second", lines)
    report.OUT.mkdir(parents=True, exist_ok=True)
    (report.OUT / "plot-lookup.svg").write_text(chart, encoding="utf-8")


def lookup_samples(size: int) -> dict[str, list[float]]:
    """At each hit rate; of the simpler ways, which the fast one must agree with."""
    chance = np.random.default_rng(size)
    keys = np.unique(chance.integers(1, 1 << 63, size))
    fast, simple = BucketIndex(keys), SortedIndex(keys)
    questions = Questions(keys, chance)
    asked = questions.draw(0.5)
    if not np.array_equal(fast.find(asked), simple.find(asked)):
        raise AssertionError("the fast index differs from binary search")
    subjects = {f"{rate:.0%}": questions.sampler(fast.find, rate) for rate in HIT_RATES}
    if size == SIZES[-1]:
        subjects["again"] = questions.sampler(fast.find, 1.0)
        subjects["binary"] = questions.sampler(simple.find, 1.0)
        subjects["sorted"] = questions.sampler(partial(sorted_first, simple), 1.0)
    return report.alternate(subjects, repeats=REPEATS)


def path(result: Report) -> None:
    """Every order along root, domain and sub-domain, texts that no table was built from."""
    with tempfile.TemporaryDirectory() as directory:
        table = plot_data.deep_table(Path(directory))
        chance = np.random.default_rng(1)
        shares = np.zeros(len(Result))
        num_probes = 0

        def sample() -> float:
            nonlocal num_probes
            keys = plot_data.text_keys(chance, BATCH_TOKENS)
            started = time.perf_counter()
            found = table.find(keys)
            taken = time.perf_counter() - started
            shares[:] += np.bincount(found.results, minlength=len(Result))
            num_probes += plot_data.num_probes(table, keys, found)
            return BATCH_TOKENS / taken / 1e6

        samples = report.alternate({"path": sample, "again": sample}, repeats=101)
    result.add("path of 3, all orders", report.median(samples["path"]), "M tokens/s")
    result.add("A/A: path", report.ratio(samples["again"], samples["path"]), "")
    shares /= shares.sum()
    probes = num_probes / (2 * (101 + 3) * BATCH_TOKENS)
    held = ", ".join(f"{len(node):,}" for node in table.nodes)
    result.note(
        f"path: nodes of {held} rows, batches of {BATCH_TOKENS} tokens; answered by trigrams "
        f"{shares[Result.TRIGRAM]:.0%}, bigrams {shares[Result.BIGRAM]:.0%}, unigrams "
        f"{shares[Result.UNIGRAM]:.0%}; {probes:.1f} probes a token"
    )


def gather(result: Report) -> None:
    """Rows of 768 bytes from 1 GB of files: in memory, and from the disk."""
    chance = np.random.default_rng(2)
    with tempfile.TemporaryDirectory() as directory:
        file = plot_data.write_values(Path(directory), MAPPED_ROWS, ROW_SHAPE)

        def copy(values: NDArray[np.float16], num_rows: int) -> float:
            staging = Staging(num_rows, ROW_SHAPE, CPU)
            out = staging.values.zero_().numpy()  # its own pages are not what is measured
            rows = chance.integers(0, len(values), num_rows).astype(np.int32)
            places = np.arange(num_rows)
            started = time.perf_counter()
            copy_rows(values, rows, out, places)
            return out.nbytes / (time.perf_counter() - started) / 1e9

        def copy_hot(hot: Tensor) -> float:
            staging = Staging(BATCH_TOKENS, ROW_SHAPE, CPU)
            staging.values.zero_()
            rows = chance.integers(0, len(hot), BATCH_TOKENS).astype(np.int32)
            places = np.arange(BATCH_TOKENS)
            started = time.perf_counter()
            staging.put_rows(hot, rows, places)
            return staging.values.nbytes / (time.perf_counter() - started) / 1e9

        cold = report.alternate(
            {"cold": lambda: copy(plot_data.cold_values(file, ROW_SHAPE), COLD_ROWS)},
            repeats=report.MIN_REPEATS,
            warmup=1,
        )
        # Only now: pages that somebody has mapped cannot be dropped.
        warm = plot_data.mapped_values(file, ROW_SHAPE)
        np.bitwise_or.reduce(warm.reshape(-1).view(np.int16)[::1024])  # touches every page
        hot = torch.from_numpy(warm[: MAPPED_ROWS // 4].copy())
        samples = report.alternate(
            {"warm": lambda: copy(warm, BATCH_TOKENS), "hot": lambda: copy_hot(hot)}, repeats=101
        )
    result.add("row gather, page cache", report.median(samples["warm"]), "GB/s")
    result.add("row gather, hot rows", report.median(samples["hot"]), "GB/s")
    result.add("row gather, cold files", report.median(cold["cold"]), "GB/s")


PARTS: dict[str, Callable[[Report], None]] = {
    "lookup": lookup,
    "path": path,
    "gather": gather,
    "batch": plot_batch.measure,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}")
    num_threads = torch.get_num_threads()
    with Report("plot") as result:
        for part in chosen:
            torch.set_num_threads(num_threads if part == "batch" else 1)
            load = os.getloadavg()[0]
            PARTS[part](result)
            result.note(
                f"load average before and after {part}: {load:.1f}, {os.getloadavg()[0]:.1f}"
            )


if __name__ == "__main__":
    main()
