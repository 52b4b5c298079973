"""Runs the benchmarks one after the other, each in a process of its own.

`python -m benchmarks` runs all, `python -m benchmarks NAME…` some. Exits 1 only if one broke: what
the figures say is for their reader, not for the exit status.
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
}


def names() -> list[str]:
    """Every benchmark in this folder."""
    modules = (path.stem for path in Path(__file__).parent.glob("*.py"))
    return sorted(name for name in modules if name not in _PARTS)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}")
    chosen = parser.parse_args().names or names()
    unknown = set(chosen) - set(names())
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    broken = []
    for name in chosen:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode:
            broken.append(name)
    if broken:
        print(f"broken: {', '.join(broken)}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
