"""Counts of traffic: decayed, bounded, counted once, and there after a restart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.knowledge_store.frequency import Frequencies, Observation, Stream
from services.knowledge_store.frequency.frequencies import decay
from services.knowledge_store.frequency.sketch import Sketch
from services.knowledge_store.frequency.snapshots import Snapshots

ACME = Stream("hminilm", "news", "acme")
BETA = Stream("hminilm", "news", "beta")
HALF_LIVES = {"news": 100.0}


def frequencies(max_keys: int = 100, max_total_keys: int = 1_000) -> Frequencies:
    return Frequencies(max_keys=max_keys, max_total_keys=max_total_keys)


def seen(
    counts: dict[int, int], stream: Stream = ACME, num_tokens: int = 0, *,
    is_counted: bool = True, born: int = 0,
) -> Observation:  # fmt: skip
    total = num_tokens or sum(counts.values())
    return Observation(
        stream, np.array(list(counts), np.int64), np.array(list(counts.values()), np.float64),
        total, 100.0, (total, 0, 0, total, 0), is_counted, born,
    )  # fmt: skip


def weights(held: Frequencies, stream: Stream = ACME) -> dict[int, float]:
    sketch = held.sketches("hminilm", HALF_LIVES).get(stream, Sketch())
    return dict(zip(sketch.keys.tolist(), sketch.weights.tolist(), strict=True))


def test_a_message_is_counted_once_by_executor_epoch_and_sequence() -> None:
    held = frequencies()
    assert held.observe("e1", 7, 1, [seen({5: 2})])
    assert not held.observe("e1", 7, 1, [seen({5: 2})])
    assert weights(held) == {5: 2.0}
    assert held.lookups("hminilm", "news") == [2, 0, 0, 2, 0]
    assert held.observe("e2", 7, 1, [seen({5: 1}, num_tokens=0)])
    assert held.observe("e1", 8, 1, [seen({5: 1})])
    assert held.observe("e1", 7, 2, [seen({6: 1})])
    # What an executor of an old epoch sends again is still known.
    assert not held.observe("e1", 7, 2, [seen({6: 1})])
    assert sum(held.lookups("hminilm", "news")[:1]) == 5


def test_a_count_weighs_half_after_a_half_life_of_tokens() -> None:
    held = frequencies()
    held.observe("e1", 1, 1, [seen({5: 8})])
    held.observe("e1", 1, 2, [seen({6: 1}, num_tokens=100)])
    assert weights(held) == pytest.approx({5: 4.0, 6: 1.0})
    held.observe("e1", 1, 3, [seen({6: 1}, num_tokens=200)])
    assert weights(held) == pytest.approx({5: 1.0, 6: 1.25})


def test_a_flood_moves_the_clock_only_as_far_as_all_others_together() -> None:
    held = frequencies()
    held.observe("e1", 1, 1, [seen({5: 50}, ACME)])
    held.observe("e1", 1, 2, [seen({6: 5_000}, BETA)])
    # acme's 50 tokens are half a half-life: beta's 5,000 are worth no more.
    assert weights(held, ACME)[5] == pytest.approx(50 * 0.5**0.5, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([ACME, BETA]), st.integers(1, 300)), max_size=20))
def test_a_domains_tokens_are_those_of_its_streams(messages: list[tuple[Stream, int]]) -> None:
    held = frequencies()
    for number, (stream, num_tokens) in enumerate(messages):
        held.observe("e1", 1, number + 1, [seen({5: 1}, stream, num_tokens)])
        if number == 10:
            held.drop([BETA])
    each = held.sketches("hminilm", HALF_LIVES).values()
    total = held.tokens("hminilm", HALF_LIVES)
    assert total == pytest.approx({"news": sum(sketch.num_tokens for sketch in each)})


def test_what_may_shape_no_table_is_looked_up_but_not_kept() -> None:
    held = frequencies()
    held.observe("e1", 1, 1, [seen({5: 9}, is_counted=False)])
    assert weights(held) == {}
    assert held.clock("hminilm", "news") == 0
    assert held.lookups("hminilm", "news")[0] == 9


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(1, 60), st.integers(1, 50), max_size=30), max_size=8),
    st.integers(1, 12),
)
def test_a_bounded_sketch_is_short_by_no_more_than_it_says(
    messages: list[dict[int, int]], capacity: int
) -> None:
    sketch, truth = Sketch(), dict[int, float]()
    for counts in messages:
        keys = np.array(list(counts), np.int64)
        numbers = np.array(list(counts.values()), np.float64)
        sketch = sketch.added(keys, numbers, sum(counts.values()), capacity)
        for k, number in counts.items():
            truth[k] = truth.get(k, 0.0) + number
    held = dict(zip(sketch.keys.tolist(), sketch.weights.tolist(), strict=True))
    assert sketch.keys.tolist() == sorted(held)
    assert len(held) <= 2 * capacity
    assert sketch.num_tokens == sum(truth.values())
    assert sketch.error <= sum(truth.values()) / (capacity + 1) + 1e-9
    for k, number in truth.items():
        assert number - sketch.error - 1e-9 <= held.get(k, 0.0) <= number + 1e-9


def test_memory_is_bounded_over_all_streams() -> None:
    held = frequencies(max_keys=100, max_total_keys=150)
    for number in range(20):
        stream = Stream("hminilm", "news", f"t{number}")
        held.observe("e1", 1, number + 1, [seen({k: k for k in range(1, 60)}, stream)])
    sketches = held.sketches("hminilm", HALF_LIVES).values()
    assert sum(len(sketch.keys) for sketch in sketches) <= 150
    # The largest counts are those that stay.
    assert max(sketch.weights.max() for sketch in sketches if len(sketch.keys)) > 25


def test_a_snapshot_brings_back_counts_and_what_was_counted(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "frequencies.npz", interval_s=1)
    held = Frequencies(max_keys=100, max_total_keys=1_000, state=snapshots.load())
    held.observe("e1", 1, 1, [seen({5: 2, 9: 7}), seen({5: 3}, BETA)])
    snapshots.write(held)
    held.observe("e1", 1, 2, [seen({5: 100})])  # lost with the crash
    again = Frequencies(
        max_keys=100, max_total_keys=1_000,
        state=Snapshots(tmp_path / "frequencies.npz", interval_s=1).load(),
    )  # fmt: skip
    assert weights(again) == pytest.approx({5: 2.0 * 0.5**0.03, 9: 7.0 * 0.5**0.03})
    assert weights(again, BETA) == {5: 3.0}
    # Sent again since it was never answered for: once, not twice; what was kept is not counted.
    assert not again.observe("e1", 1, 1, [seen({5: 2})])
    assert again.observe("e1", 1, 2, [seen({5: 100})])


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 and then nothing", b"{}"])
def test_a_damaged_snapshot_is_kept_aside_and_counts_begin_anew(
    tmp_path: Path, data: bytes
) -> None:
    path = tmp_path / "frequencies.npz"
    path.write_bytes(data)
    assert Snapshots(path, interval_s=1).load().sketches == {}
    assert (tmp_path / "frequencies.damaged").read_bytes() == data


def test_what_is_gone_or_no_longer_shared_is_forgotten() -> None:
    held = frequencies()
    held.observe("e1", 1, 1, [seen({5: 2}), seen({5: 3}, BETA)])
    assert set(held.streams()) == {ACME, BETA}
    held.drop([BETA])
    assert weights(held, BETA) == {}
    assert weights(held) != {}
    held.forget("hminilm", "news")
    assert weights(held) == {}
    assert held.lookups("hminilm", "news") == [0, 0, 0, 0, 0]


def test_a_domain_begins_anew_whatever_another_of_its_path_counted(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "frequencies.npz", interval_s=1)
    held = frequencies()
    held.renew("hminilm", "news", born=1)
    held.observe("e1", 1, 1, [seen({5: 8}, born=1)])
    snapshots.write(held)
    held = Frequencies(max_keys=100, max_total_keys=1_000, state=snapshots.load())
    held.renew("hminilm", "news", born=1)
    assert (weights(held), held.clock("hminilm", "news")) == ({5: 8.0}, 8.0)
    held.renew("hminilm", "news", born=2)
    # What was looked up in the old one and comes late is not the new one's.
    held.observe("e1", 1, 2, [seen({6: 8}, born=1)])
    assert (weights(held), held.clock("hminilm", "news")) == ({}, 0.0)
    assert held.lookups("hminilm", "news") == [0, 0, 0, 0, 0]
    held.observe("e1", 1, 3, [seen({7: 1}, born=2)])
    assert weights(held) == {7: 1.0}


def test_a_count_ahead_of_its_clock_weighs_what_it_did() -> None:
    assert decay(-1e9, 100.0) == 1.0
    held = frequencies()
    held.renew("hminilm", "news", born=1, clock=500.0)
    assert held.clock("hminilm", "news") == 500.0
    held.renew("hminilm", "news", born=1, clock=400.0)
    assert held.clock("hminilm", "news") == 500.0


def test_nobody_waits_while_sketches_are_decayed(monkeypatch: pytest.MonkeyPatch) -> None:
    held = frequencies()
    held.observe("e1", 1, 1, [seen({5: 8})])
    decayed = Sketch.decayed

    def checked(sketch: Sketch, factor: float) -> Sketch:
        assert not held._lock.locked()
        return decayed(sketch, factor)

    monkeypatch.setattr(Sketch, "decayed", checked)
    assert weights(held) == {5: 8.0}
    with held._lock:
        assert held.clock("hminilm", "news") == 8.0
        assert held.lookups("hminilm", "news")[0] == 8
