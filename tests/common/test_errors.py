"""A fresh copy says what the error said and holds nothing of where it was raised."""

from __future__ import annotations

import pytest

from services.common.errors import (
    HmiError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgument("blob", "is wrong", reason="WRONG"),
        NotFound("gone"),
        ResourceExhausted("too much", subject="tenant:acme", retry_after_s=1.5),
        Unavailable("away", retry_after_s=0.5),
    ],
)
def test_a_fresh_copy_says_the_same_and_holds_no_frames(error: HmiError) -> None:
    try:
        raise error from ValueError("the cause")
    except HmiError as caught:
        fresh = caught.fresh()
    assert type(fresh) is type(error)
    assert str(fresh) == str(error)
    assert fresh.to_status() == error.to_status()
    assert (fresh.__traceback__, fresh.__cause__, fresh.__context__) == (None, None, None)
