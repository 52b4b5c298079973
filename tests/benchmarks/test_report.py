"""Figures, their intervals and how they are judged."""

import json
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.report import Estimate, Goal, Report

ROOT = Path(__file__).parents[2]


def test_a_goal_is_met_only_if_the_interval_clears_it() -> None:
    assert Goal("<=", 1.15).is_met(Estimate(1.1, 1.0, 1.15))
    assert not Goal("<=", 1.15).is_met(Estimate(1.1, 1.0, 1.2))
    assert Goal(">=", 2.0).is_met(Estimate(2.4, 2.0, 2.8))
    assert not Goal(">=", 2.0).is_met(Estimate(2.4, 1.9, 2.8))


def test_the_file_has_the_agreed_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path / "out")
    with Report("sample") as sample:
        sample.add("ratio", Estimate(1.0, 0.9, 1.1), "x", Goal("<=", 1.15))
        sample.add("latency", Estimate(3.0, 2.0, 4.0), "ms")
    written = json.loads((tmp_path / "out" / "sample.json").read_text())
    assert set(written) == {"machine", "figures"}
    assert written["figures"] == [
        {
            "name": "ratio",
            "value": 1.0,
            "low": 0.9,
            "high": 1.1,
            "unit": "x",
            "goal": "<= 1.15",
            "met": True,
        },
        {
            "name": "latency",
            "value": 3.0,
            "low": 2.0,
            "high": 4.0,
            "unit": "ms",
            "goal": None,
            "met": None,
        },
    ]


def test_the_environment_says_where_files_go(tmp_path: Path) -> None:
    code = "from benchmarks.report import Report; print(Report('sample').publish())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT), "HMI_BENCH_OUT": str(tmp_path / "out")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "sample.json")


def test_what_was_measured_before_a_failure_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "OUT", tmp_path)
    sample = Report("sample")

    def measure() -> None:
        with sample:
            sample.add("first", Estimate(1.0, 1.0, 1.0), "s")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        measure()
    assert len(json.loads((tmp_path / "sample.json").read_text())["figures"]) == 1


def test_a_median_lies_in_its_interval_and_equal_samples_have_none() -> None:
    estimate = report.median([5.0, 1.0, 2.0, 3.0, 4.0, 9.0, 2.5])
    assert estimate.low <= estimate.value <= estimate.high
    assert estimate.value == 3.0
    assert report.median([2.0] * 9) == Estimate(2.0, 2.0, 2.0)


def test_a_ratio_of_paired_samples_ignores_what_slows_both() -> None:
    below = [1.0, 1.0, 8.0, 1.0, 1.0, 8.0, 1.0]
    estimate = report.ratio([2 * sample for sample in below], below)
    assert estimate == Estimate(2.0, 2.0, 2.0)


def test_subjects_take_turns_and_warm_up_uncounted() -> None:
    order: list[str] = []

    def subject(name: str) -> float:
        order.append(name)
        return float(ord(name))

    samples = report.alternate(
        {name: partial(subject, name) for name in "abc"}, repeats=20, warmup=1
    )
    assert samples == {name: [float(ord(name))] * 20 for name in "abc"}
    turns = [order[start : start + 3] for start in range(0, len(order), 3)]
    assert {*map(frozenset, turns)} == {frozenset("abc")}
    # Each has followed each other one.
    assert len({(first, second) for turn in turns for first, second in pairwise(turn)}) == 6


def test_too_few_repeats_are_refused() -> None:
    with pytest.raises(ValueError, match="few"):
        report.alternate({"a": lambda: 1.0}, repeats=6)
