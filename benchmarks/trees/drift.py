"""Traffic that moves from one subject to another, and a tenant that floods.

Knows the two scenes and how they are said; counting and planning are the store's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chart import Line, line_chart
from benchmarks.report import Estimate, Goal, Report
from benchmarks.resampling import difference_of_ratios
from benchmarks.trees.lookups import Hits
from benchmarks.trees.sharing import Domain, Sent, rounds, with_path
from benchmarks.trees.texts import NEWS, REVIEWS, Text, source
from benchmarks.trees.world import World

HALF_LIFE = 50_000
ROUND = 5_000
NUM_TENANTS = 10
FLOOD = 20
_OLD, _NEW = f"{NEWS}/sports", f"{NEWS}/politics"
_ORDER = 2  # a hit: answered by a trigram or bigram


@dataclass
class Move:
    """Held-out hits of the new subject, in %, after each update."""

    shares: list[tuple[float, float]] = field(default_factory=list)
    anew: float = 0.0


def measure(world: World, report: Report) -> list[Move]:
    """Both scenes on the first fold's texts."""
    report.note(
        f"drift and flood: one domain below the root, {NUM_TENANTS} tenants, half-life "
        f"{HALF_LIFE:,} tokens, an update after each {ROUND:,} tokens; a hit is a token answered "
        "by a trigram or bigram"
    )
    moves = [_drift(world, report)]
    _flood(world, report, "another's traffic", 1)
    _flood(world, report, "that of all others together", NUM_TENANTS)
    return moves


def _texts(world: World, path: str, *, is_held_out: bool) -> list[Text]:
    traffic = world.folds[0].traffic
    texts = traffic.held_out if is_held_out else traffic.counted
    return with_path([text for text in texts if text.path == path], NEWS, seed=0)


def _drift(world: World, report: Report) -> Move:
    """A table from sport; then politics alone."""
    domain = Domain(NEWS, world.root, HALF_LIFE)
    for round_ in rounds(_texts(world, _OLD, is_held_out=False), NUM_TENANTS, ROUND):
        domain.observe(round_)
    domain.update(is_first=True)
    new, held_out = _texts(world, _NEW, is_held_out=False), _texts(world, _NEW, is_held_out=True)
    anew = Domain(NEWS, world.root, HALF_LIFE)
    move, largest, after = Move(), 0.0, [domain.hits(held_out)]
    for round_ in rounds(new, NUM_TENANTS, ROUND):
        domain.observe(round_)
        anew.observe(round_)
        largest = max(largest, domain.update())
        after.append(domain.hits(held_out))
    anew.update(is_first=True)
    corpus = Domain(NEWS, world.root, HALF_LIFE, corpus=source("", new))
    corpus.update(is_first=True)
    ideal = anew.hits(held_out)
    move.anew = 100 * ideal.share(_ORDER)
    move.shares = [(ROUND * n, 100 * hits.share(_ORDER)) for n, hits in enumerate(after) if n]
    _report_drift(report, after, ideal, corpus.hits(held_out), largest)
    return move


def _report_drift(
    report: Report, after: list[Hits], ideal: Hits, corpus: Hits, largest: float
) -> None:
    goal = Goal("<=", 2.0)
    report.add("drift: lost to a table built anew, as the move begins", _lost(ideal, after[0]),
               "points")  # fmt: skip
    report.add("drift: lost to a table built anew, at the end", _lost(ideal, after[-1]), "points",
               goal)  # fmt: skip
    report.add("drift: lost to a table of the same texts as an exempt corpus, at the end",
               _lost(corpus, after[-1]), "points", goal)  # fmt: skip
    back = [n for n, hits in enumerate(after) if _lost(ideal, hits).value <= goal.bound]
    if back:
        report.add("drift: updates until within 2 points", _exact(back[0]), "")
        report.add("drift: tokens until within 2 points", _exact(back[0] * ROUND), "tokens")
    report.add("drift: rows changed by an update, of the larger of the tables before and wanted, "
               "at most", _exact(100 * largest), "%", Goal("<=", 5.0))  # fmt: skip


def _flood(world: World, report: Report, whose: str, times_all: int) -> None:
    """Sport goes on; one more tenant sends film reviews, 20 times the traffic of `times_all`."""
    texts, held_out = (_texts(world, _OLD, is_held_out=part) for part in (False, True))
    half = len(texts) // 2
    quiet, flooded = Domain(NEWS, world.root, HALF_LIFE), Domain(NEWS, world.root, HALF_LIFE)
    for domain in (quiet, flooded):
        for round_ in rounds(texts[:half], NUM_TENANTS, ROUND):
            domain.observe(round_)
        domain.update(is_first=True)
        # What the flood sends competes for the bytes that the table has.
        domain.max_rows = len(domain.rows)
    reviews = _texts(world, REVIEWS, is_held_out=False)
    sent = sum(len(text.keys) for text in reviews)
    num_times = FLOOD * times_all * ROUND / NUM_TENANTS / sent
    for round_ in rounds(texts[half:], NUM_TENANTS, ROUND):
        quiet.observe(round_)
        flooded.observe([*round_, Sent("flood", reviews, num_times)])
        quiet.update()
        flooded.update()
    lost = _lost(quiet.hits(held_out), flooded.hits(held_out))
    report.add(f"flood: a tenant sending {FLOOD} times {whose} costs the others", lost, "points",
               Goal("<=", 2.0))  # fmt: skip


def _lost(better: Hits, worse: Hits) -> Estimate:
    """Points of hit rate."""
    lost = difference_of_ratios(better.at_least(_ORDER), worse.at_least(_ORDER), better.num_tokens)
    return Estimate(100 * lost.value, 100 * lost.low, 100 * lost.high)


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value)


def draw(moves: list[Move], directory: Path) -> None:
    """Hits over tokens of new traffic."""
    directory.mkdir(parents=True, exist_ok=True)
    move = moves[0]
    lines = [
        Line("updated", move.shares),
        Line("built anew", [(move.shares[0][0], move.anew), (move.shares[-1][0], move.anew)]),
    ]
    chart = line_chart(
        "Sport gives way to politics: held-out politics answered by a trigram or bigram",
        f"tokens of new traffic, an update each {ROUND:,}", "% of tokens", lines, is_log=False,
    )  # fmt: skip
    (directory / "trees-drift.svg").write_text(chart, encoding="utf-8")
