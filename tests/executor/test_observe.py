"""Counts of n-grams: the sketch against exact counts, the counter against brute force."""

from __future__ import annotations

from collections import Counter as Exact
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import ngrams
from services.executor.engine.batching import Row
from services.executor.engine.engine import Part
from services.executor.engine.interfaces import LoadedBase, Pinned
from services.executor.engine.items import Item, ModelKey
from services.executor.miss_policy import MissPolicy
from services.executor.observe import Counter
from services.executor.observe.counter import Counts, Group
from services.executor.observe.sketch import HeavyHitters
from services.executor.plot.manifest import Manifest, NodeRef
from services.executor.plot.metrics import LOOKUPS
from tests.executor.fake_base import FakeBase
from tests.executor.fake_base import loaded as fake_loaded


@dataclass(frozen=True)
class FakeTable:
    manifest: Manifest

    @classmethod
    def of(cls, path: str) -> FakeTable:
        return cls(Manifest("base", MissPolicy.BACKOFF, (NodeRef(path, 0, "encoder", ()),)))


@dataclass(frozen=True)
class FakeRetrieved:
    values: torch.Tensor
    results: torch.Tensor


def loaded(name: str) -> LoadedBase:
    plain = fake_loaded(FakeBase(), name)
    fields = {field: getattr(plain, field) for field in plain.__dataclass_fields__}
    return LoadedBase(**{**fields, "name": name})


def part(
    rows: Sequence[tuple[str, str, Sequence[int]]],
    orders: Sequence[int] | None = None,
    base: str = "hminilm",
) -> Part:
    """Rows of (path, tenant, token ids)."""
    made = [
        Row(
            Item(n, ModelKey(tenant, "m", 1, "d", base), np.array(ids, np.int64)),
            Pinned(None, FakeTable.of(path)),
        )
        for n, (path, tenant, ids) in enumerate(rows)
    ]
    told = orders if orders is not None else [3] * sum(len(ids) for _, _, ids in rows)
    retrieved = FakeRetrieved(torch.empty(0), torch.tensor(told, dtype=torch.uint8))
    return Part(loaded(base), made, retrieved)


def exact_counts(texts: Sequence[Sequence[int]]) -> Exact[tuple[int, int, int]]:
    """Slots of every unigram, bigram and trigram, counted one by one."""
    counted: Exact[tuple[int, int, int]] = Exact()
    for ids in texts:
        slots = [0, *(number + 1 for number in ids), 0]
        for left, centre, right in zip(slots, slots[1:], slots[2:], strict=False):
            counted[0, centre, 0] += 1
            counted[left, centre, 0] += bool(left)
            counted[0, centre, right] += bool(right)
            counted[left, centre, right] += bool(left and right)
    return +counted


def told_counts(counts: Counts) -> dict[tuple[int, ...], int]:
    return {
        tuple(slots): number
        for sketch in counts.sketches
        for slots, number in zip(
            ngrams.unpack(sketch.keys).tolist(), sketch.counts.tolist(), strict=True
        )
    }


@given(st.lists(st.lists(st.integers(0, 60), max_size=80), max_size=12), st.integers(1, 30))
@settings(deadline=None)
def test_a_sketch_counts_never_too_much_and_too_little_within_its_bound(
    batches: list[list[int]], capacity: int
) -> None:
    sketch = HeavyHitters(capacity)
    exact: Exact[int] = Exact()
    for batch in batches:
        keys, counts = np.unique(np.array(batch, np.int64), return_counts=True)
        sketch.add(keys, counts)
        exact.update(batch)
        assert len(sketch) <= capacity
    kept = dict(zip(sketch.keys.tolist(), sketch.counts.tolist(), strict=True))
    assert sketch.error <= exact.total() / (capacity + 1)
    assert sorted(kept) == list(sketch.keys)
    for key, count in exact.items():
        assert count - sketch.error <= kept.get(key, 0) <= count


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "news"]),
            st.sampled_from(["a", "b"]),
            st.lists(st.integers(0, 4), min_size=1, max_size=9),
        ),
        min_size=1,
        max_size=12,
    ),
    st.data(),
)
@settings(deadline=None)
def test_every_n_gram_of_every_tenant_and_domain_is_counted_as_one_by_one(
    rows: list[tuple[str, str, list[int]]], data: st.DataObject
) -> None:
    num_tokens = sum(len(ids) for _, _, ids in rows)
    orders = data.draw(st.lists(st.integers(0, 3), min_size=num_tokens, max_size=num_tokens))
    cut = data.draw(st.integers(1, len(rows)))
    num_first = sum(len(ids) for _, _, ids in rows[:cut])
    counter = Counter()
    counter.observe(part(rows[:cut], orders[:num_first]))
    if cut < len(rows):
        counter.observe(part(rows[cut:], orders[num_first:]))
    counter.count()
    taken = counter.take()
    places = np.repeat(np.arange(len(rows)), [len(ids) for _, _, ids in rows])
    for group in {Group("hminilm", path, tenant) for path, tenant, _ in rows}:
        own = [n for n, (path, tenant, _) in enumerate(rows) if (path, tenant) == group[1:]]
        counts = taken.pop(group)
        assert told_counts(counts) == exact_counts([rows[n][2] for n in own])
        right = np.bincount(np.array(orders)[np.isin(places, own)], minlength=4)
        assert counts.results.tolist() == right.tolist()
    assert not taken
    assert not counter.take()


def test_all_counts_together_are_bounded_and_the_frequent_stay() -> None:
    counter = Counter(max_keys=3000)
    chooser = np.random.default_rng(0)
    for number in range(30):
        ids = np.concatenate([chooser.integers(10, 20_000, 200), np.full(50, 5)])
        counter.observe(part([("", f"tenant-{number % 10}", ids.tolist())]))
        counter.count()
    taken = counter.take()
    assert sum(counts.num_keys for counts in taken.values()) <= 3000
    assert sum(counts.num_tokens for counts in taken.values()) == 30 * 250
    for counts in taken.values():
        assert 150 - counts.sketches[0].error <= told_counts(counts)[0, 6, 0] <= 150


def test_results_are_a_metric() -> None:
    before = LOOKUPS.labels("hminilm", "bigram")._value.get()
    Counter().observe(part([("", "a", [1, 2, 3])], [2, 2, 0]))
    assert LOOKUPS.labels("hminilm", "bigram")._value.get() == before + 2
