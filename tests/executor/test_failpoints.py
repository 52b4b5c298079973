"""Failpoints end the process where and when they are told to."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.failpoints import Failpoints, off
from services.executor.failpoints import POINTS, arm


def reached(plan: str, point: str, *nums: int) -> int:
    """How often the process would have ended."""
    kills: list[str] = []
    failpoints = Failpoints(plan, POINTS, kill=lambda: kills.append(point))
    for num in nums:
        failpoints.reach(point, num)
    return len(kills)


def test_kill_comes_with_the_nth_item() -> None:
    assert reached("after_submit=kill@3", "after_submit", 1, 1) == 0
    assert reached("after_submit=kill@3", "after_submit", 1, 1, 1) == 1
    assert reached("after_submit=kill@3", "after_submit", 8) == 1
    assert reached("after_submit=kill@1", "before_event", 8) == 0


def test_random_follows_its_probability() -> None:
    assert reached("before_event=random:1", "before_event", 1) == 1
    assert reached("before_event=random:0", "before_event", 1000) == 0


def test_once_a_file_is_there_one_life_ends_of_it(tmp_path: Path) -> None:
    plan = f"after_submit=once:{tmp_path / 'now'}"
    assert reached(plan, "after_submit", 1) == 0
    (tmp_path / "now").touch()
    assert reached(plan, "before_event", 1) == 0
    assert reached(plan, "after_submit", 1, 1) == 1
    assert reached(plan, "after_submit", 1) == 0


@pytest.mark.parametrize(
    "plan",
    ["nowhere=kill@1", "after_submit=explode", "after_submit=kill@x", "after_submit=once:here"],
)
def test_a_plan_that_cannot_be_read_is_refused(plan: str) -> None:
    with pytest.raises(ValueError, match=r"failpoint|invalid"):
        arm(plan)


def test_no_plan_is_off() -> None:
    assert arm("") is off
