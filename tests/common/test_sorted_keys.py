"""Sets of ascending keys against Python's own."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from services.common.sorted_keys import (
    NONE,
    IntArray,
    added_up,
    contains,
    heaviest_first,
    in_two,
    union,
    values_of,
    without,
)

some_keys = st.sets(st.integers(0, 40))


def ascending(keys: set[int]) -> IntArray:
    return np.array(sorted(keys), np.int64)


@given(some_keys, st.lists(st.integers(0, 40)))
def test_what_is_contained_is_told_in_the_order_asked(held: set[int], asked: list[int]) -> None:
    is_held = contains(ascending(held), np.array(asked, np.int64))
    assert is_held.tolist() == [key in held for key in asked]


def test_questions_of_any_shape_are_answered_in_it() -> None:
    asked = np.arange(6).reshape(3, 2)
    assert contains(np.array([1, 4]), asked).tolist() == [
        [False, True],
        [False, False],
        [True, False],
    ]
    assert contains(NONE, asked).shape == (3, 2)


@given(some_keys, some_keys, some_keys)
def test_sets_are_joined_and_taken_apart_as_sets_are(a: set[int], b: set[int], c: set[int]) -> None:
    sets = [ascending(each) for each in (a, b, c)]
    assert union(*sets).tolist() == sorted(a | b | c)
    assert in_two(*sets).tolist() == sorted((a & b) | (a & c) | (b & c))
    assert without(sets[0], sets[1]).tolist() == sorted(a - b)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9))))
def test_values_of_the_same_key_are_added(pairs: list[tuple[int, int]]) -> None:
    keys = np.array([key for key, _ in pairs], np.int64)
    values = np.array([value for _, value in pairs], np.float64)
    sums: dict[int, int] = {}
    for key, value in pairs:
        sums[key] = sums.get(key, 0) + value
    found, added = added_up(keys, values)
    assert dict(zip(found.tolist(), added.tolist(), strict=True)) == sums
    assert found.tolist() == sorted(sums)


def test_a_key_that_is_not_there_has_the_default() -> None:
    keys, values = np.array([2, 5]), np.array([0.5, 7.0])
    assert values_of(keys, values, np.array([5, 3, 2])).tolist() == [7.0, 0.0, 0.5]
    assert values_of(keys, values, np.array([3]), default=-1.0).tolist() == [-1.0]


def test_equal_weights_fall_in_the_order_of_their_keys() -> None:
    keys, weights = np.array([1, 3, 4, 8]), np.array([2.0, 9.0, 2.0, 9.0])
    assert keys[heaviest_first(keys, weights)].tolist() == [3, 8, 1, 4]
