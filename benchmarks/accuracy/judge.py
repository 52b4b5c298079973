"""What the outcomes say: accuracies, losses against the base, fidelity, and controls.

Knows goals and intervals; does not know encoders. Intervals are of a paired bootstrap over folds
(each with an adapter of its own) and, inside them, over films, documents or samples.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.accuracy.measure import NUM_NEIGHBOURS, TaskOutcome
from benchmarks.accuracy.subjects import ADAPTED, BACKOFF, BASE, COMPUTE, OURS, SINGLETONS
from benchmarks.report import Estimate, Goal, Report
from benchmarks.resampling import Drawn, mean_of, nested

_VIEWS = (COMPUTE, BACKOFF, SINGLETONS)
_AVERAGE = {COMPUTE: Goal("<=", 1.0), BACKOFF: Goal("<=", 1.5), SINGLETONS: Goal("<=", 1.5)}
_WORST = {COMPUTE: Goal("<=", 2.0), BACKOFF: Goal("<=", 3.0), SINGLETONS: Goal("<=", 3.0)}
_BEATS = Goal(">=", 0.0)


def judge(report: Report, outcomes: Sequence[TaskOutcome]) -> None:
    """All figures into the report."""
    rows = list(outcomes[0].rows)
    for outcome in outcomes:
        for row in outcome.rows:
            report.add(f"{outcome.name}: {row}", _points(_accuracy(outcome, row)), "%")
    for row in rows:
        for outcome in outcomes:
            if row != BASE:
                report.add(
                    f"neighbours, {outcome.name}: {row}", _points(_shared(outcome, row)), "%"
                )
    for row in rows:
        if row != BASE:
            _report_losses(report, outcomes, row)
    _report_controls(report, outcomes)
    for outcome in outcomes:
        _note_hits(report, outcome)


def _report_losses(report: Report, outcomes: Sequence[TaskOutcome], row: str) -> None:
    """Points lost against the base; goals are for hMiniLM alone."""
    view = row.removeprefix(f"{OURS}, ")
    losses = [_difference(outcome, BASE, row) for outcome in outcomes if row in outcome.rows]
    average = _points(mean_of(losses))
    report.add(f"lost on average: {row}", average, "points", _AVERAGE.get(view))
    for outcome, loss in zip(outcomes, losses, strict=True):
        report.add(f"lost, {outcome.name}: {row}", _points(loss), "points", _WORST.get(view))
    shared = mean_of([_shared(outcome, row) for outcome in outcomes])
    report.add(f"neighbours on average: {row}", _points(shared), "%")


def _report_controls(report: Report, outcomes: Sequence[TaskOutcome]) -> None:
    """Encoders of as many tokens against each other."""
    ours = f"centre, {COMPUTE}"
    for other in ("dropped", "unigram", f"sum, {COMPUTE}"):
        _report_pair(report, outcomes, ours, other, is_goal=not other.startswith("sum"))
    for view in _VIEWS:
        _report_pair(report, outcomes, f"{ADAPTED}, {view}", f"{OURS}, {view}", is_goal=False)


def _report_pair(
    report: Report, outcomes: Sequence[TaskOutcome], ours: str, other: str, *, is_goal: bool
) -> None:
    both = [outcome for outcome in outcomes if ours in outcome.rows and other in outcome.rows]
    if not both:
        return
    for outcome in both:
        goal = _BEATS if is_goal and outcome.name == "tags" else None
        gain = _points(_difference(outcome, ours, other))
        report.add(f"{outcome.name}: {ours} over {other}", gain, "points", goal)
    shared = _points(mean_of([_shared_difference(outcome, ours, other) for outcome in both]))
    goal = _BEATS if is_goal else None
    report.add(f"neighbours on average: {ours} over {other}", shared, "points", goal)


def _note_hits(report: Report, outcome: TaskOutcome) -> None:
    for view in (BACKOFF, SINGLETONS):
        row = outcome.rows.get(f"{OURS}, {view}")
        if row is not None:
            three, two = 100 * row.hits[3], 100 * row.hits[2]
            report.note(
                f"{outcome.name}: {len(outcome.asked):,} texts, {outcome.num_tokens:,} tokens; "
                f"{view} answers {three:.0f} % of held-out tokens by a trigram, {two:.0f} % by a "
                "bigram"
            )


def _seed(outcome: TaskOutcome) -> int:
    """One a task: its rows are drawn alike, other tasks independently."""
    return sum(outcome.name.encode())


def _accuracy(outcome: TaskOutcome, row: str) -> Drawn:
    right = outcome.rows[row].right
    return nested(right, outcome.asked, outcome.groups, outcome.folds, seed=_seed(outcome))


def _difference(outcome: TaskOutcome, better: str, worse: str) -> Drawn:
    right = outcome.rows[better].right - outcome.rows[worse].right
    return nested(right, outcome.asked, outcome.groups, outcome.folds, seed=_seed(outcome))


def _shared(outcome: TaskOutcome, row: str) -> Drawn:
    shared = outcome.rows[row].shared / NUM_NEIGHBOURS
    return nested(shared, shared * 0 + 1, outcome.groups, outcome.folds, seed=_seed(outcome))


def _shared_difference(outcome: TaskOutcome, better: str, worse: str) -> Drawn:
    more = (outcome.rows[better].shared - outcome.rows[worse].shared) / NUM_NEIGHBOURS
    return nested(more, more * 0 + 1, outcome.groups, outcome.folds, seed=_seed(outcome))


def _points(drawn: Drawn) -> Estimate:
    share = drawn.estimate
    return Estimate(100 * share.value, 100 * share.low, 100 * share.high)
