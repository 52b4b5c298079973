"""Keys of n-grams against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import ngrams

token_ids = st.integers(0, ngrams.MAX_TOKEN_ID)
rows_of_ids = st.lists(st.lists(token_ids, max_size=6), max_size=6)


def flat(rows: list[list[int]]) -> np.ndarray:
    return np.array([token for row in rows for token in row], np.int64)


@settings(deadline=None)
@given(rows_of_ids)
def test_a_key_holds_a_token_and_its_neighbours_within_the_row(rows: list[list[int]]) -> None:
    expected = [
        (
            row[i - 1] + 1 if i else 0,
            row[i] + 1,
            row[i + 1] + 1 if i + 1 < len(row) else 0,
        )
        for row in rows
        for i in range(len(row))
    ]
    keys = ngrams.keys_of(flat(rows), [len(row) for row in rows])
    assert keys.dtype == np.int64
    assert [tuple(slots) for slots in ngrams.unpack(keys).tolist()] == expected
    assert (keys >= 0).all()
    assert ngrams.is_key(keys).all()


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, ngrams.SLOT_MASK)] * 3), min_size=1, max_size=8))
def test_packing_loses_nothing_and_backing_off_clears_slots(
    slots: list[tuple[int, int, int]],
) -> None:
    left, centre, right = np.array(slots).T
    keys = ngrams.pack(left, centre, right)
    assert ngrams.unpack(keys).tolist() == [list(slot) for slot in slots]
    assert ngrams.order_of(keys).tolist() == [sum(s > 0 for s in slot) for slot in slots]
    nothing = np.zeros_like(left)
    assert (ngrams.without_right(keys) == ngrams.pack(left, centre, nothing)).all()
    assert (ngrams.without_left(keys) == ngrams.pack(nothing, centre, right)).all()
    assert (ngrams.only_centre(keys) == ngrams.pack(nothing, centre, nothing)).all()
    left_bigrams, right_bigrams = ngrams.without_right(keys), ngrams.without_left(keys)
    every = np.stack([keys, left_bigrams, right_bigrams, ngrams.only_centre(keys)]).T
    assert (ngrams.candidates(keys) == every).all()
    assert ngrams.is_key(keys).tolist() == [slot[1] > 0 for slot in slots]


def test_a_key_is_the_bits_that_the_contract_states() -> None:
    assert ngrams.pack(1, 2, 3) == 1 << 42 | 2 << 21 | 3
    assert ngrams.keys_of([0, 1, 5], [2, 1]).tolist() == [1 << 21 | 2, 1 << 42 | 2 << 21, 6 << 21]


def test_numbers_without_a_centre_are_no_keys() -> None:
    assert ngrams.is_key(np.array([-1, 0, 5, 1 << 42, 1 << 21])).tolist() == [
        False, False, False, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "lengths"),
    [([1, 2], [1]), ([1], [2]), ([1], [2, -1]), ([-1], [1]), ([ngrams.MAX_TOKEN_ID + 1], [1])],
)
def test_what_cannot_be_packed_is_refused(ids: list[int], lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"lengths|token ids"):
        ngrams.keys_of(ids, lengths)


def test_slots_beyond_21_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="slots"):
        ngrams.pack([1], [ngrams.SLOT_MASK + 1], [0])
    with pytest.raises(ValueError, match="slots"):
        ngrams.pack([-1], [1], [0])
