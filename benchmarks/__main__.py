"""Runs the benchmarks one after the other, each in a process of its own.

`python -m benchmarks` runs all but those of texts to fetch, `python -m benchmarks NAME…` some;
options after a single name are that benchmark's. Exits 1 only if one broke: what the figures say is
for their reader, not for the exit status.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

# Modules here that measure nothing themselves.
_PARTS = {
    "__init__",
    "__main__",
    "report",
    "load",
    "inprocess",
    "bare",
    "gpu_rivals",
    "rivals",
    "rival_worker",
    "workload",
    "chart",
    "news",
    "plot_data",
    "plot_batch",
    "datasets",
    "resampling",
    "served",
    "starting",
}
# Run by name only: what prepares a benchmark, and what looks into one.
_STEPS = {
    "accuracy-controls": "accuracy.controls",
    "accuracy-merging": "accuracy.merging",
}
# Run by name only: make targets of their own fetch their texts first.
_OF_TEXTS = {"accuracy", "trees", "drift", "plot"}


def names(*, with_texts: bool = True) -> list[str]:
    """Every benchmark in this folder.

    Args:
        with_texts: Those too that stop or measure less without texts that are fetched.
    """
    here = Path(__file__).parent
    modules = {path.stem for path in here.glob("*.py")} - _PARTS
    packages = {path.parent.name for path in here.glob("*/__main__.py")}
    return sorted((modules | packages) - (set() if with_texts else _OF_TEXTS))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parsed, options = parser.parse_known_args()
    chosen = parsed.names or names(with_texts=False)
    unknown = set(chosen) - {*names(), *_STEPS}
    if options and len(parsed.names) != 1:
        parser.error(f"{options[0]}: options are of one benchmark, which is to be named")
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    broken = []
    for name in chosen:
        print(f"== {name}", flush=True)
        module = f"benchmarks.{_STEPS.get(name, name)}"
        if subprocess.run([sys.executable, "-m", module, *options], check=False).returncode:
            broken.append(name)
    if broken:
        print(f"broken: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
