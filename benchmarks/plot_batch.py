"""A batch through a split MiniLM against the same batch through the whole one.

Knows encoder, local encoder and retriever, called as the engine calls them, one after the other: no
lane overlaps another here. Texts are BBC News, held out from those that the measured table was
built from; every turn takes texts that no turn took before, for all subjects the same.

Speed does not depend on weights: where no local encoder is shipped, one of the same shape stands
for it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import news, report
from benchmarks.plot_data import small_table
from benchmarks.report import Estimate, Goal, Report
from benchmarks.trees.lookups import answering
from hmi.bases import minilm_directory
from services.common import ngrams
from services.common.local_encoder_format import Form
from services.common.ngram_counts import answering_keys
from services.executor.construct.local_file import load_local
from services.executor.construct.student import start
from services.executor.miss_policy import MissPolicy
from services.executor.models.bypass import NoBypass
from services.executor.models.encoder import Encoder, load_base
from services.executor.models.local_encoder import LocalEncoder
from services.executor.models.segments import Segments
from services.executor.plot import Retriever, RowCaches, RowSource, Table

SHIPPED = Path(__file__).parent.parent / "models" / "hminilm" / "local_encoder.safetensors"
SPLIT = 3
NUM_ROWS, ROW_TOKENS = 32, 48
REPEATS, WARMUP = 101, 3
RATES = (1.0, 0.9, 0.5, 0.0)
GOALS = {
    ("compute", "100 %"): 1.7,
    ("compute", "90 %"): 1.4,
}
CPU = torch.device("cpu")


class Batches:
    """Fresh texts for each turn: int64 `[turns, rows, tokens]`, and their n-grams."""

    def __init__(self, token_ids: NDArray[np.int64]) -> None:
        self.token_ids = token_ids
        self.lengths = [token_ids.shape[2]] * token_ids.shape[1]
        self.keys = [ngrams.keys_of(batch.reshape(-1), self.lengths) for batch in token_ids]

    @property
    def distinct(self) -> NDArray[np.int64]:
        return np.unique(np.concatenate(self.keys))

    def hit_rate(self, held: NDArray[np.int64]) -> float:
        """Share of tokens whose full n-gram is held."""
        return float(np.isin(np.concatenate(self.keys), held).mean())


class Whole:
    """The unsplit base."""

    def __init__(self, base: Encoder, batches: Batches) -> None:
        self._base, self._batches = base, batches
        self._turn = 0

    def sample(self) -> float:
        batch = self._batches.token_ids[self._turn]
        self._turn += 1
        started = time.perf_counter()
        self.hidden(batch)
        return time.perf_counter() - started

    @torch.inference_mode()
    def hidden(self, batch: NDArray[np.int64]) -> Tensor:
        segments = Segments(self._batches.lengths, CPU)
        hidden = self._base.embed(torch.from_numpy(batch.reshape(-1)), None, segments)
        layers = range(self._base.config.num_layers)
        return self._base.run(hidden, segments, layers=layers, bypass=NoBypass())


class Split:
    """Rows looked up, or computed, and the layers above."""

    def __init__(self, base: Encoder, local: LocalEncoder, table: Table, batches: Batches) -> None:
        self._base, self._local, self._table, self._batches = base, local, table, batches
        self._turn = 0

    def sample(self) -> float:
        batch = self._batches.token_ids[self._turn]
        self._turn += 1
        shape = (self._local.num_slots, self._local.hidden_size)
        # Empty, so that what other turns computed does not help; filled as in earnest.
        caches = RowCaches(shape, total_bytes=1 << 26, tenant_bytes=1 << 23)
        retriever = Retriever(shape, CPU, caches)
        started = time.perf_counter()
        self.hidden(retriever, batch)
        return time.perf_counter() - started

    @torch.inference_mode()
    def hidden(self, retriever: Retriever, batch: NDArray[np.int64]) -> Tensor:
        sources = [RowSource(self._table, "acme")] * len(batch)
        rows = retriever.retrieve(batch.reshape(-1), self._batches.lengths, sources)
        return self._above(rows.values)

    @torch.inference_mode()
    def expected(self, batch: NDArray[np.int64]) -> Tensor:
        """What `hidden` must be, from the table's keys as a sorted list and rows computed anew."""
        keys = ngrams.keys_of(batch.reshape(-1), self._batches.lengths)
        if not self._table.computes:
            [(_, root)] = self._table.searched
            keys = answering(keys, root.entries()[0])
        distinct, inverse = np.unique(keys, return_inverse=True)
        rows = self._local.rows(torch.from_numpy(distinct))
        return self._above(rows[torch.from_numpy(inverse.reshape(-1))])

    def _above(self, values: Tensor) -> Tensor:
        segments = Segments(self._batches.lengths, CPU)
        hidden = self._local.merge(self._local.split_values(values, segments), None, segments)
        layers = range(self._local.split, self._base.config.num_layers)
        return self._base.run(hidden, segments, layers=layers, bypass=NoBypass())


def measure(result: Report) -> None:
    """Add unsplit / split at each hit rate, under both policies."""
    if not news.is_there():
        result.note("not measured: batches through a split base (make bench-plot brings the texts)")
        return
    directory = minilm_directory()
    base = load_base(directory, dtype=torch.bfloat16, device=CPU).for_inference()
    local = _local(base, result)
    seen, held_out = news.token_rows(directory / "tokenizer.json", ROW_TOKENS)
    num_turns = REPEATS + WARMUP
    order = np.random.default_rng(0).permutation(len(held_out))[: num_turns * NUM_ROWS]
    batches = Batches(held_out[order].reshape(num_turns, NUM_ROWS, ROW_TOKENS))
    with tempfile.TemporaryDirectory() as scratch:
        tables = Tables(Path(scratch), local, base.config.vocab_size, batches)
        held = _held(batches, news.frequent(seen))
        for name, keys in held.items():
            result.note(f"trigrams of the batches held at {name}: {batches.hit_rate(keys):.1%}")
        subjects: dict[str, Callable[[], float]] = {
            "whole": Whole(base, batches).sample,
            "again": Whole(base, batches).sample,
        }
        splits = {
            (policy.value, name): Split(base, local, tables.make(keys, policy), batches)
            for policy in MissPolicy
            for name, keys in held.items()
        }
        _check(local, batches, splits)
        subjects |= {f"{policy} {name}": split.sample for (policy, name), split in splits.items()}
        samples = report.alternate(subjects, repeats=REPEATS, warmup=WARMUP)
    _publish(result, samples, list(splits))


def _held(batches: Batches, frequent: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """The n-grams in the table at each rate: chance decides, for every n-gram once."""
    distinct = batches.distinct
    chance = np.random.default_rng(1).random(len(distinct))
    held = {"the measured rate": frequent}
    held |= {f"{rate * 100:.0f} %": distinct[chance < rate] for rate in RATES}
    return held


class Tables:
    """Makes tables of n-grams and all unigrams.

    Only rows that the batches can ask for are computed, each once; the others are zero.
    """

    def __init__(
        self, directory: Path, local: LocalEncoder, vocab_size: int, batches: Batches
    ) -> None:
        self._directory, self._local = directory, local
        self._unigrams = (np.arange(vocab_size, dtype=np.int64) + 1) << ngrams.SLOT_BITS
        self._askable = np.unique(answering_keys(np.concatenate(batches.keys)))
        self._keys = np.empty(0, np.int64)
        self._rows = np.empty((0, local.num_slots, local.hidden_size), np.float16)

    def make(self, keys: NDArray[np.int64], policy: MissPolicy) -> Table:
        if policy is MissPolicy.BACKOFF:
            keys = np.union1d(keys, self._unigrams)
        shape = (self._local.num_slots, self._local.hidden_size)
        return small_table(self._directory, keys, self._computed, shape, policy, self._local)

    def _computed(self, keys: NDArray[np.int64]) -> NDArray[np.float16]:
        needed = np.intersect1d(keys, self._askable)
        new = np.setdiff1d(needed, self._keys)
        if len(new):
            rows = self._local.rows(torch.from_numpy(new)).numpy()
            order = np.argsort(np.concatenate([self._keys, new]))
            self._keys = np.concatenate([self._keys, new])[order]
            self._rows = np.concatenate([self._rows, rows])[order]
        values = np.zeros((len(keys), *self._rows.shape[1:]), np.float16)
        values[np.searchsorted(keys, needed)] = self._rows[np.searchsorted(self._keys, needed)]
        return values


def _local(base: Encoder, result: Report) -> LocalEncoder:
    if SHIPPED.is_file():
        return load_local(SHIPPED, base)
    result.note("the local encoder is the base's own lower layers, untrained")
    return LocalEncoder.of(base, start(base, SPLIT), Form.CENTRE)


def _check(local: LocalEncoder, batches: Batches, splits: dict[tuple[str, str], Split]) -> None:
    """What comes out of the last layer is what each token's answering n-gram gives, to the last
    bit: the longest one held under `backoff`, its own under `compute` whatever is held."""
    shape = (local.num_slots, local.hidden_size)
    caches = RowCaches(shape, total_bytes=0, tenant_bytes=0)
    retriever = Retriever(shape, CPU, caches)
    batch = batches.token_ids[0]
    for (policy, name), split in splits.items():
        if not torch.equal(split.hidden(retriever, batch), split.expected(batch)):
            raise AssertionError(f"wrong answers under {policy}, {name}")


def _publish(
    result: Report, samples: dict[str, list[float]], splits: list[tuple[str, str]]
) -> None:
    whole = samples["whole"]
    in_ms = [seconds * 1000 for seconds in whole]
    result.add(f"batch of {NUM_ROWS} x {ROW_TOKENS} tokens, unsplit", report.median(in_ms), "ms")
    result.add("A/A: unsplit / unsplit", report.ratio(whole, samples["again"]), "")
    for policy, name in splits:
        bound = GOALS.get((policy, name), 1.7 if policy == "backoff" else None)
        result.add(
            f"unsplit / split, {policy}, {name}",
            report.ratio(whole, samples[f"{policy} {name}"]),
            "",
            None if bound is None else Goal(">=", bound),
        )
    result.add("compute breaks even at a hit rate of", break_even(samples), "%")


def break_even(samples: dict[str, list[float]]) -> Estimate:
    """The hit rate at which `compute` takes as long as the whole base, in percent: for each turn,
    the straight line through its times at the four rates."""
    misses = np.array([1 - rate for rate in RATES])
    rates = []
    for turn, whole in enumerate(samples["whole"]):
        times = [samples[f"compute {rate * 100:.0f} %"][turn] for rate in RATES]
        slope, at_full = np.polyfit(misses, times, 1)
        rates.append(100 * (1 - (whole - at_full) / slope))
    return report.median(rates)
