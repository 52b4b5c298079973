"""A bucket in a clock of the test's own."""

from __future__ import annotations

import pytest

from services.common.rates import Bucket


def test_it_fills_at_its_rate_up_to_its_burst() -> None:
    bucket = Bucket.full(10.0, 20.0, 0.0)
    bucket.take(20, 0.0)
    assert bucket.wait_s(1.0, 0.0) == pytest.approx(0.1)
    assert bucket.wait_s(1.0, 0.06) == pytest.approx(0.04)
    bucket.refill(100.0)
    assert bucket.level == 20.0


def test_a_debt_is_paid_off_before_anything_is_there() -> None:
    bucket = Bucket.full(10.0, 20.0, 0.0)
    bucket.take(70, 0.0)
    assert bucket.wait_s(1.0, 0.0) == pytest.approx(5.1)


def test_what_is_given_back_fills_no_further_than_the_burst() -> None:
    bucket = Bucket.full(10.0, 20.0, 0.0)
    bucket.take(5, 0.0)
    bucket.take(-100, 0.0)
    assert bucket.level == 20.0


def test_another_rate_keeps_what_was_used() -> None:
    bucket = Bucket.full(10.0, 20.0, 0.0)
    bucket.take(15, 0.0)
    bucket.set_rate(20.0, 40.0, 0.0)
    assert bucket.level == 25.0
    bucket.set_rate(10.0, 20.0, 0.0)
    assert bucket.level == 5.0


def test_a_rate_of_0_is_unlimited() -> None:
    bucket = Bucket.full(0.0, 1.0, 0.0)
    bucket.take(1_000, 0.0)
    assert bucket.wait_s(1.0, 0.0) == 0.0
