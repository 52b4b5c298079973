"""Which deadlines have passed, against the definition."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.common.deadlines import Deadlines


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=60))
def test_deadlines_give_exactly_what_has_passed(entries: list[tuple[int, bool]]) -> None:
    over = {i for i, (_, is_over) in enumerate(entries) if is_over}
    deadlines = Deadlines[int](lambda i: i in over)
    for i, (at, _) in enumerate(entries):
        deadlines.add(float(at), i)
    expected = [i for i, (at, is_over) in enumerate(entries) if at <= 10 and not is_over]
    assert sorted(deadlines.expired(10.0)) == expected
    later = [at for at, is_over in entries if at > 10 and not is_over]
    assert deadlines.next_at() == (min(later) if later else None)
