"""Runs the benchmark of quality: `make bench-accuracy`.

Three tasks in five folds: topics of news, sentiment of reviews, parts of speech; and the nearest
neighbours of sentence embeddings. Adapters have the same budget in every row. Controls are measured
if `python -m benchmarks accuracy-controls` has made them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from benchmarks import datasets
from benchmarks.accuracy.judge import judge
from benchmarks.accuracy.learner import ALPHA, RANK, RECIPES
from benchmarks.accuracy.measure import measure_alone
from benchmarks.accuracy.subjects import Encoders
from benchmarks.accuracy.tasks import LIMITS, NUM_FOLDS, QUICK, Limits
from benchmarks.report import OUT, Report

ENCODER = Path(__file__).parents[2] / "models" / "hminilm"
CONTROLS = OUT / "controls"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="the one that is judged")
    parser.add_argument("--controls", type=Path, help=f"{CONTROLS} if there are some")
    parser.add_argument("--task", action="append", choices=list(LIMITS), help="one of the tasks")
    parser.add_argument("--only", action="append", default=[], help="one of the rows, by name")
    parser.add_argument("--quick", action="store_true", help="a fifth of the texts, two folds")
    options = parser.parse_args()
    controls = options.controls or (CONTROLS if CONTROLS.is_dir() else None)
    limits = QUICK if options.quick else LIMITS
    folds = range(2 if options.quick else NUM_FOLDS)
    ask = partial(measure_alone, options.encoder, controls, limits, folds, frozenset(options.only))
    # A process a task, each on one thread: products this small gain little by a second one.
    workers = ProcessPoolExecutor(len(LIMITS), get_context("spawn"))
    with Report("accuracy") as report, workers as pool:
        try:
            outcomes = list(pool.map(ask, options.task or LIMITS))
        except datasets.Missing as missing:
            sys.exit(str(missing))
        judge(report, outcomes)
        _note(report, Encoders.of(options.encoder, controls), limits, len(folds))


def _note(report: Report, encoders: Encoders, limits: Mapping[str, Limits], num_folds: int) -> None:
    split = encoders.ours.split
    for name, most in limits.items():
        report.note(
            f"{name}: at most {most.texts:,} texts, each cut at {most.tokens} tokens, adapters "
            f"trained on {most.learnt:,} of a fold's others: longer texts and more to learn from "
            "may give other figures"
        )
    report.note(
        f"{num_folds} folds; LoRA r = {RANK}, alpha = {ALPHA} on query and value of layers "
        f"{split} and up, a linear head, trained on texts seen as they are when served; "
        f"{encoders.base.dtype}; epochs "
        + ", ".join(f"{name} {recipe.num_epochs}" for name, recipe in RECIPES.items())
    )
    if described := encoders.described:
        report.note(
            f"controls (centre, sum, unigram, dropped): {described['num_tokens']:,} tokens each, "
            f"seed {described['seed']}, the same text in the same order; adapted: "
            f"{described['adapt_tokens']:,} tokens of texts kept aside"
        )


if __name__ == "__main__":
    main()
