"""Runs the benchmarks one after the other, each in a process of its own.

`python -m benchmarks` runs all, `python -m benchmarks NAME…` some; options after a single name are
that benchmark's. Exits 1 only if one broke: what the figures say is for their reader, not for the
exit status.
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
# Run by name only: it prepares what a benchmark measures.
_STEPS = {"accuracy-controls": "accuracy.controls"}


def names() -> list[str]:
    """Every benchmark in this folder."""
    here = Path(__file__).parent
    modules = {path.stem for path in here.glob("*.py")} - _PARTS
    packages = {path.parent.name for path in here.glob("*/__main__.py")}
    return sorted(modules | packages)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    parsed, options = parser.parse_known_args()
    chosen = parsed.names or names()
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
