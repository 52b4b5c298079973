"""Counts of n-grams against plain loops, and the blobs that carry them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load

from services.common import array_blob, ngrams
from services.common.errors import InvalidArgument
from services.common.ngram_counts import (
    NgramCounter,
    NgramCounts,
    keys_from_bytes,
    keys_to_bytes,
    merge_counts,
)

rows_of_ids = st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=8)


def count(rows: list[list[int]]) -> Counter[tuple[int, int, int]]:
    """Each token, once for each n-gram that could answer for it."""
    counted: Counter[tuple[int, int, int]] = Counter()
    for row in rows:
        padded = [0, *[token + 1 for token in row], 0]
        for left, centre, right in zip(padded, padded[1:], padded[2:], strict=False):
            counted.update(
                {(left, centre, right), (left, centre, 0), (0, centre, right), (0, centre, 0)}
            )
    return counted


def as_counter(counts: NgramCounts) -> dict[tuple[int, ...], int]:
    slots = ngrams.unpack(counts.keys).tolist()
    return dict(zip(map(tuple, slots), counts.counts.tolist(), strict=True))


@settings(deadline=None)
@given(st.lists(rows_of_ids, max_size=4), st.integers(1, 40))
def test_counts_are_those_of_a_plain_loop(texts: list[list[list[int]]], max_pending: int) -> None:
    counter = NgramCounter(max_pending=max_pending)
    for rows in texts:
        counter.add([token for row in rows for token in row], [len(row) for row in rows])
    counts = counter.counts("digest")
    rows = [row for text in texts for row in text]
    assert as_counter(counts) == count(rows)
    assert counts.num_tokens == sum(map(len, rows))
    assert (np.diff(counts.keys) > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=40), min_size=1, max_size=20))
def test_in_bounded_memory_counts_are_low_by_at_most_what_is_said(rows: list[list[int]]) -> None:
    counter = NgramCounter(max_entries=64, max_pending=50)
    for row in rows:
        counter.add(row, [len(row)])
    counts = as_counter(counter.counts("digest"))
    exact = count(rows)
    assert len(counts) <= 64 + 31
    for key, number in exact.items():
        assert number - counter.max_undercount <= counts.get(key, 0) <= number
    unigrams = {key: number for key, number in exact.items() if key[0] == key[2] == 0}
    assert {key: counts[key] for key in unigrams} == unigrams


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=4))
def test_merged_counts_are_sums(parts: list[dict[int, int]]) -> None:
    ordered = [sorted(part.items()) for part in parts]
    keys, counts = merge_counts(
        [np.array([key for key, _ in part], np.int64) for part in ordered],
        [np.array([number for _, number in part], np.int64) for part in ordered],
    )
    total: Counter[int] = Counter()
    for part in parts:
        total.update(part)
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == dict(total)


def counted() -> NgramCounts:
    counter = NgramCounter()
    counter.add([1, 2, 3, 1, 2], [3, 2])
    return counter.counts("ab" * 32)


def test_a_counts_blob_returns_what_was_counted_and_is_safetensors() -> None:
    counts = counted()
    blob = counts.to_bytes()
    again = NgramCounts.from_bytes(blob)
    assert as_counter(again) == as_counter(counts)
    assert (again.num_tokens, again.tokenizer_digest) == (5, "ab" * 32)
    assert blob == counted().to_bytes()
    assert load(blob)["counts"].tolist() == counts.counts.tolist()


def test_a_keys_blob_returns_the_keys() -> None:
    keys = counted().keys
    assert keys_from_bytes(keys_to_bytes(keys)).tolist() == keys.tolist()


GOOD = {"format": "hmi.ngram_counts/1", "num_tokens": 1, "tokenizer_digest": "d"}
KEYS = np.array([1 << 21, 2 << 21], np.int64)


@pytest.mark.parametrize(
    ("arrays", "metadata"),
    [
        ({"keys": KEYS, "counts": KEYS}, {**GOOD, "format": "other"}),
        ({"keys": KEYS}, GOOD),
        ({"keys": KEYS, "counts": KEYS[:1]}, GOOD),
        ({"keys": KEYS, "counts": -KEYS}, GOOD),
        ({"keys": KEYS, "counts": KEYS.astype(np.float32)}, GOOD),
        ({"keys": KEYS[::-1], "counts": KEYS}, GOOD),
        ({"keys": KEYS[[0, 0]], "counts": KEYS}, GOOD),
        ({"keys": np.array([1, 2]), "counts": KEYS}, GOOD),
        ({"keys": KEYS.reshape(1, 2), "counts": KEYS}, GOOD),
        ({"keys": KEYS, "counts": KEYS}, {**GOOD, "num_tokens": -1}),
        ({"keys": KEYS, "counts": KEYS}, {**GOOD, "num_tokens": True}),
        ({"keys": KEYS, "counts": KEYS}, {**GOOD, "tokenizer_digest": 3}),
    ],
)
def test_counts_that_contradict_the_format_are_refused(
    arrays: dict[str, np.ndarray], metadata: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument):
        NgramCounts.from_bytes(array_blob.to_bytes(arrays, metadata))


def test_keys_that_are_none_are_refused() -> None:
    with pytest.raises(InvalidArgument):
        keys_from_bytes(counted().to_bytes())
    with pytest.raises(InvalidArgument):
        keys_from_bytes(keys_to_bytes(KEYS[::-1]))


@settings(deadline=None)
@given(st.data())
def test_a_damaged_container_is_refused_or_read_never_anything_else(data: st.DataObject) -> None:
    blob = bytearray(counted().to_bytes())
    cut = data.draw(st.integers(0, len(blob)))
    for place in data.draw(st.lists(st.integers(0, len(blob) - 1), max_size=3)):
        blob[place] = data.draw(st.integers(0, 255))
    try:
        array_blob.parse(bytes(blob[:cut]), what="blob")
    except InvalidArgument:
        return
    assert cut == len(blob)


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=4),
    st.integers(1, 6),
)
def test_counts_merged_range_after_range_are_their_sum(
    runs: list[dict[int, int]], at_once: int
) -> None:
    keys = [np.array(sorted(run), np.int64) for run in runs]
    counts = [np.array([run[key] for key in sorted(run)], np.int64) for run in runs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("services.common.ngram_counts._MERGED_AT_ONCE", at_once)
        merged, sums = merge_counts(keys, counts)
    total: Counter[int] = Counter()
    for run in runs:
        total.update(run)
    assert dict(zip(merged.tolist(), sums.tolist(), strict=True)) == total
    assert merged.tolist() == sorted(total)
