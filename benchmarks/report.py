"""What a benchmark says and how sure it is: repeats, intervals, a table and a JSON file.

Knows statistics and output only; does not know what is measured. Needs nothing beyond the standard
library, so that the GPU benchmark runs on a bare machine with torch.
"""

from __future__ import annotations

import json
import math
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

# HMI_BENCH_OUT keeps a run apart from those before it.
OUT = Path(os.environ.get("HMI_BENCH_OUT") or Path(__file__).parent / "out")
RESAMPLES = 2_000
MIN_REPEATS = 7

S = TypeVar("S")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Goal:
    """What a figure should be: at most (`<=`) or at least (`>=`) a bound."""

    relation: str
    bound: float

    def __post_init__(self) -> None:
        if self.relation not in ("<=", ">="):
            raise ValueError(f"relation {self.relation!r} is neither <= nor >=")

    def is_met(self, estimate: Estimate) -> bool:
        """Whether the whole interval lies on the right side of the bound."""
        if self.relation == "<=":
            return estimate.high <= self.bound
        return estimate.low >= self.bound

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """One line of a report; `goal` and `met` are None where nothing is promised."""

    name: str
    value: float
    low: float
    high: float
    unit: str
    goal: str | None = None
    met: bool | None = None


class Report:
    """A benchmark's figures. Use as a context manager: what was measured is published even if a
    later measurement fails.

    Args:
        name: The benchmark's, and its JSON file's.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.figures: list[Figure] = []
        self.notes: list[str] = []

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        self.publish()

    def add(self, name: str, estimate: Estimate, unit: str, goal: Goal | None = None) -> Figure:
        """Take a figure in, judged against its goal."""
        figure = Figure(
            name=name,
            **asdict(estimate),
            unit=unit,
            goal=None if goal is None else str(goal),
            met=None if goal is None else goal.is_met(estimate),
        )
        self.figures.append(figure)
        return figure

    def note(self, text: str) -> None:
        """Something a reader must know beside the figures, such as what could not be measured."""
        self.notes.append(text)

    def publish(self) -> Path:
        """Print the table and write `out/NAME.json`; returns its path."""
        described = machine()
        print(f"\n{self.name} on {described['cpu']}, {described['device']}")
        print(table(self.figures))
        for note in self.notes:
            print(f"note: {note}")
        OUT.mkdir(parents=True, exist_ok=True)
        path = OUT / f"{self.name}.json"
        content = {"machine": described, "figures": [asdict(figure) for figure in self.figures]}
        if self.notes:
            content["notes"] = self.notes
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        return path


def median(samples: Sequence[float], *, seed: int = 0) -> Estimate:
    """The median and its bootstrap 95 % interval (percentile method)."""
    chance = random.Random(seed)
    medians = [statistics.median(chance.choices(samples, k=len(samples))) for _ in range(RESAMPLES)]
    return _percentiles(statistics.median(samples), medians)


def ratio(numerator: Sequence[float], denominator: Sequence[float], *, seed: int = 0) -> Estimate:
    """The median of the turns' ratios and its bootstrap 95 % interval.

    The samples of `alternate` are pairs, taken one after the other: what slowed a whole turn down
    weighs on both sides, and so cancels. (Two medians may come from turns of different speed.)
    """
    pairs = zip(numerator, denominator, strict=True)
    return median([above / below for above, below in pairs], seed=seed)


def _percentiles(value: float, resampled: list[float]) -> Estimate:
    resampled.sort()
    tail = round(0.025 * len(resampled))
    return Estimate(value, resampled[tail], resampled[-1 - tail])


def alternate(
    subjects: Mapping[str, Callable[[], S]],
    *,
    repeats: int = 15,
    warmup: int = 3,
    until: float = math.inf,
) -> dict[str, list[S]]:
    """Samples of each subject, taken in turns, each turn in another order: nobody always finds the
    caches as the same other one left them.

    Args:
        subjects: By name, what measures itself once and returns seconds (or something else). Enter
            one twice, under two names, for an A/A pair: the noise floor of a ratio.
        repeats: Turns that count, at least seven.
        warmup: Turns before those.
        until: `time.monotonic()` seconds after which seven turns are enough.
    """
    if repeats < MIN_REPEATS:
        raise ValueError(f"{repeats} repeats are too few to be believed")
    names, chance = list(subjects), random.Random(0)
    samples: dict[str, list[S]] = {name: [] for name in names}
    for turn in range(warmup + repeats):
        if turn >= warmup + MIN_REPEATS and time.monotonic() > until:
            break
        for name in chance.sample(names, len(names)):
            sample = subjects[name]()
            if turn >= warmup:
                samples[name].append(sample)
    return samples


def table(figures: Sequence[Figure]) -> str:
    """The figures as aligned columns."""
    rows = [("figure", "value", "95 % interval", "goal", "met")]
    for figure in figures:
        met = {None: "", True: "yes", False: "NO"}[figure.met]
        unit = f" {figure.unit}" if figure.unit else ""
        interval = f"{figure.low:.4g} to {figure.high:.4g}"
        rows.append((figure.name, f"{figure.value:.4g}{unit}", interval, figure.goal or "", met))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def machine() -> dict[str, object]:
    """What the figures depend on: processor, cores, memory, device, versions."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    versions = {}
    for package in ("torch", "transformers", "peft", "triton"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "device": device,
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        "versions": versions,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
