"""Runs the benchmark of domain trees: `make bench-trees`.

The BBC tree (root, `news`, five topics) and `reviews/movies`, five folds, every text held out once.
Only keys are looked up, so no encoder is needed but the list of its root's keys.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import datasets
from benchmarks.report import Report
from benchmarks.trees import drift, foresight, shapes, texts
from benchmarks.trees.world import World, root_keys

_ROOT = Path(__file__).parents[2]
_PLOTS = _ROOT / "docs" / "plots"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trees", description=__doc__)
    parser.add_argument(
        "--root-keys", type=Path, default=_ROOT / "models" / "hminilm" / "root_keys.safetensors",
        help="of the encoder whose root it is",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one fold instead of five, no plots")
    parser.add_argument("--plots", type=Path, default=_PLOTS, help="where pictures go")
    options = parser.parse_args()
    try:
        every_text, groups = texts.load()
        root = root_keys(options.root_keys)
    except datasets.Missing as missing:
        sys.exit(str(missing))
    num_folds = 1 if options.quick else 5
    world = World(every_text, datasets.folds(groups, 5, seed=0), root, range(num_folds))
    with Report("trees") as report:
        report.note(world.described)
        curves = shapes.measure(world, report)
        foresight.measure(world, report)
        moves = drift.measure(world, report)
        if not options.quick:
            shapes.draw(curves, options.plots)
            drift.draw(moves, options.plots)


if __name__ == "__main__":
    main()
