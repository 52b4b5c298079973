"""Hits against bytes: the store's selection, other choices of equal size, other shapes.

Knows what is compared and how it is said; does not know how traffic moves over time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.chart import Line, line_chart
from benchmarks.report import Estimate, Goal, Report
from benchmarks.resampling import difference_of_ratios, ratio_of_sums
from benchmarks.trees.lookups import Hits, Tables, look_up
from benchmarks.trees.sharing import shared_counts
from benchmarks.trees.tables import (
    ROW_BYTES,
    Choice,
    as_large,
    counted,
    drawn,
    leaves_alone,
    one_table,
    rows_below_root,
    selected,
    storable,
)
from benchmarks.trees.texts import ROOT
from benchmarks.trees.world import Fold, World

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
DEFAULT = 0.5
MIN_TENANTS = 3
_ORDERS = {3: "trigram", 2: "trigram or bigram"}
_STEPS = 12


@dataclass
class Measured:
    """One way to choose rows, over the folds.

    Attributes:
        by_order: `[texts, 4]`, as Hits.
        below_root: The same, but only what rows below the root answered.
        num_rows: Below the root, one number a fold.
    """

    by_order: list[np.ndarray[tuple[int, int], np.dtype[np.int64]]] = field(default_factory=list)
    below_root: list[np.ndarray[tuple[int, int], np.dtype[np.int64]]] = field(default_factory=list)
    num_rows: list[int] = field(default_factory=list)

    @property
    def hits(self) -> Hits:
        return Hits(np.concatenate(self.by_order))

    @property
    def hits_below_root(self) -> Hits:
        return Hits(np.concatenate(self.below_root))

    @property
    def megabytes(self) -> float:
        return float(np.mean(self.num_rows)) * ROW_BYTES / 1e6


Curves = dict[str, dict[float, Measured]]


def measure(world: World, report: Report) -> Curves:
    """Everything of this file into the report; the curves for the plots."""
    curves: Curves = {}
    for fold in world.folds:
        for alpha in ALPHAS:
            for name, tables in _choices(world, fold, alpha).items():
                measured = curves.setdefault(name, {}).setdefault(alpha, Measured())
                held_out = fold.traffic.held_out
                measured.by_order.append(look_up(held_out, tables).by_order)
                if name in ("tree", "oracle"):
                    below = look_up(held_out, tables, beside=world.root)
                    measured.below_root.append(below.by_order)
                measured.num_rows.append(rows_below_root(tables, world.root))
    _report_selection(report, curves)
    _report_shapes(report, curves)
    _report_sharing(world, report, curves)
    return curves


def _choices(world: World, fold: Fold, alpha: float) -> dict[str, Tables]:
    choice = Choice(alpha)
    tree = selected(world.nodes, fold.counts, world.root, choice)
    everything = {path: counts.keys for path, counts in fold.counts.items()}
    unseen = {path: counts.keys for path, counts in fold.held_out_counts.items()}
    whole = fold.counts[ROOT]
    hindsight = counted(fold.held_out_counts)
    tables: dict[str, Tables] = {
        "tree": tree,
        "oracle": as_large(tree, storable(fold.counts, alpha), hindsight),
        "random": as_large(tree, everything, drawn(seed=0)),
        "leaves alone": leaves_alone(world.leaves, fold.counts, world.root, choice),
        "one table": one_table(world.leaves, whole, world.root, choice),
    }
    if alpha == DEFAULT:
        num_rows = rows_below_root(tree, world.root)
        tables["no tree"] = {ROOT: world.root}
        tables["oracle of what was counted"] = as_large(tree, everything, hindsight)
        tables["oracle of what comes"] = as_large(tree, unseen, hindsight)
        tables["one table, equal bytes"] = _as_many_rows(
            lambda some: one_table(world.leaves, whole, world.root, some), world, num_rows
        )
        tables["leaves alone, equal bytes"] = _as_many_rows(
            lambda some: leaves_alone(world.leaves, fold.counts, world.root, some), world, num_rows
        )
    return tables


def _as_many_rows(make: Callable[[Choice], Tables], world: World, num_rows: int) -> Tables:
    """The tables of the alpha that gives about as many rows, at most."""
    low, high = 0.0, 1.0
    best = make(Choice(low))
    for _ in range(_STEPS):
        alpha = (low + high) / 2
        tables = make(Choice(alpha))
        if rows_below_root(tables, world.root) <= num_rows:
            low, best = alpha, tables
        else:
            high = alpha
    return best


def _report_selection(report: Report, curves: Curves) -> None:
    tree = curves["tree"]
    for alpha in (0.3, DEFAULT, 0.7):
        for order, name in _ORDERS.items():
            _add_share(report, f"alpha {alpha:g}: tokens answered by a {name}", tree[alpha], order)
    for alpha in (0.3, DEFAULT, 0.7):
        _add_against_oracle(report, f"alpha {alpha:g}: hits", tree[alpha], curves["oracle"][alpha])
    for name in ("oracle of what was counted", "oracle of what comes", "random"):
        for order, said in _ORDERS.items():
            report.add(
                f"alpha {DEFAULT:g}: {said}, tree ÷ {name}",
                _ratio(tree[DEFAULT], curves[name][DEFAULT], order),
                "",
            )
    for name in ("oracle", "random"):
        report.add(
            f"alpha {DEFAULT:g}: gained over the root alone, tree ÷ {name}",
            _ratio_of_gains(tree[DEFAULT], curves[name][DEFAULT], curves["no tree"][DEFAULT]),
            "",
        )
    report.note(
        "oracle: as many rows of each order in each node, those that held-out traffic uses most "
        "among the n-grams that selection may store (counted more than once); of what was counted: "
        "also those counted once; of what comes: any n-gram of the held-out traffic itself"
    )


def _add_against_oracle(report: Report, name: str, tree: Measured, oracle: Measured) -> None:
    """The goal is one of rows that were chosen: what the root answers is in no choice, and the same
    on both sides."""
    goal = Goal(">=", 0.97)
    for order, said in _ORDERS.items():
        below = ratio_of_sums(
            tree.hits_below_root.at_least(order), oracle.hits_below_root.at_least(order)
        )
        report.add(f"{name} by a {said} below the root, tree ÷ oracle", below, "", goal)
        both = _ratio(tree, oracle, order)
        report.add(f"{name} by a {said}, the root's with them, tree ÷ oracle", both, "")


def _report_shapes(report: Report, curves: Curves) -> None:
    names = (
        "tree", "leaves alone", "leaves alone, equal bytes", "one table", "one table, equal bytes",
        "no tree",
    )  # fmt: skip
    for name in names:
        measured = curves[name][DEFAULT]
        size = measured.megabytes
        report.add(f"{name}: below the root", Estimate(size, size, size), "MB")
        for order, said in _ORDERS.items():
            _add_share(report, f"{name}: tokens answered by a {said}", measured, order)


def _report_sharing(world: World, report: Report, curves: Curves) -> None:
    """The same texts as traffic of as many tenants instead of corpora."""
    shared = Measured()
    for fold in world.folds:
        counts = shared_counts(fold.traffic.counted, world.nodes, MIN_TENANTS)
        tables = selected(world.nodes, counts, world.root, Choice(DEFAULT))
        shared.by_order.append(look_up(fold.traffic.held_out, tables).by_order)
        shared.num_rows.append(rows_below_root(tables, world.root))
    size = shared.megabytes
    report.add(f"sharing, m = {MIN_TENANTS}: below the root", Estimate(size, size, size), "MB")
    tree = curves["tree"][DEFAULT].hits
    for order, said in _ORDERS.items():
        lost = difference_of_ratios(
            tree.at_least(order), shared.hits.at_least(order), tree.num_tokens
        )
        report.add(f"sharing, m = {MIN_TENANTS}: lost by a {said}", _points(lost), "points")


def _share_of(hits: Hits, order: int) -> float:
    return hits.share(order) - hits.share(order + 1)


def _add_share(report: Report, name: str, measured: Measured, order: int) -> None:
    hits = measured.hits
    report.add(name, _points(ratio_of_sums(hits.at_least(order), hits.num_tokens)), "%")


def _ratio(first: Measured, second: Measured, order: int) -> Estimate:
    return ratio_of_sums(first.hits.at_least(order), second.hits.at_least(order))


def _ratio_of_gains(first: Measured, second: Measured, none: Measured) -> Estimate:
    """By a trigram or bigram, each less what the root alone answers."""
    before = none.hits.at_least(2)
    return ratio_of_sums(first.hits.at_least(2) - before, second.hits.at_least(2) - before)


def _points(share: Estimate) -> Estimate:
    return Estimate(100 * share.value, 100 * share.low, 100 * share.high)


def draw(curves: Curves, directory: Path) -> None:
    """Hits by order against bytes, and against other choices."""
    directory.mkdir(parents=True, exist_ok=True)
    tree = [(one.megabytes, one.hits) for one in curves["tree"].values()]
    by_order = [
        Line(
            name, [(size, 100 * (hits.share(order) - hits.share(order + 1))) for size, hits in tree]
        )
        for order, name in ((3, "trigram"), (2, "bigram"), (1, "unigram"))
    ]
    title = "What answers, for alpha from 0.3 to 1.0 (left to right)"
    x_title, y_title = "MB below the root", "% of held-out tokens"
    _write(directory / "trees-orders.svg", line_chart(title, x_title, y_title, by_order))
    names = ("oracle", "tree", "one table", "leaves alone", "random")
    choices = [
        Line(name, [(one.megabytes, 100 * one.hits.share(2)) for one in curves[name].values()])
        for name in names
    ]
    title = "Answered by a trigram or bigram, for alpha from 0.3 to 1.0"
    _write(directory / "trees-choices.svg", line_chart(title, x_title, y_title, choices))


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
