"""What a tenant within its share feels of one that floods, and what fairness costs in throughput.

A quiet tenant sends an open loop at a tenth of saturation; a flooding one keeps 20 times the items
in flight that its half of the device needs, first with resident models, then cycling through cold
ones. The unfair queue is the same load sent under one tenant's key: one queue, first come first
served. One MiniLM stack; shares of the machine's cores as in `benchmarks/serving.py`.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import LoadReport, LoadSpec, run_load, start_load
from benchmarks.report import Goal, Report, median, ratio
from benchmarks.serving import TEXTS, blobs, inprocess_rate, secret_of
from hmi.client import Client, Push
from hmi.stack import LocalStack

NUM_RESIDENT = 8
NUM_COLD = 400
REPEATS = 7
SECONDS = 6.0
QUIET_PART = 0.1
FLOOD_IN_FLIGHT = 20 * 42  # 42 rows of 48 tokens fill a batch
BATCH_ROWS = 42
# Room for about 60 of the models that follow each other.
SMALL_DEVICE_BYTES = str(12 << 20)


@dataclass(frozen=True)
class Tenant:
    """A key and the names of its models."""

    key: str
    models: tuple[str, ...]


def make_tenant(stack: LocalStack, name: str, num_models: int, seed: int) -> Tenant:
    models = tuple(f"m{index}" for index in range(num_models))
    with Client(stack.address, key=stack.admin_key) as admin:
        key = secret_of(admin.create_tenant(name))
    with Client(stack.address, key=key) as client:
        pushes = [
            Push(model, blob) for model, blob in zip(models, blobs(num_models, seed), strict=True)
        ]
        if any(outcome.error is not None for outcome in client.push_versions(pushes)):
            raise RuntimeError("a version was refused")
    return Tenant(key, models)


class Mix:
    """A quiet and a flooding load, alone and together."""

    def __init__(self, stack: LocalStack, quiet: Tenant, flood: Tenant, rate: float) -> None:
        self._quiet = LoadSpec(
            stack.address, quiet.key, quiet.models, TEXTS, "arrivals",
            seconds=SECONDS, rate=rate, warmup_s=1.5,
        )  # fmt: skip
        self._flood = LoadSpec(
            stack.address, flood.key, flood.models, TEXTS, "stream",
            concurrency=FLOOD_IN_FLIGHT, seconds=SECONDS, warmup_s=1.5,
        )  # fmt: skip

    def alone(self) -> LoadReport:
        return run_load(self._quiet)

    def together(self, *, is_fair: bool) -> tuple[LoadReport, LoadReport]:
        """The quiet load's report and the flooding one's."""
        quiet = self._quiet
        if not is_fair:
            quiet = dataclasses.replace(quiet, key=self._flood.key, models=self._flood.models)
        flooding = start_load(self._flood)
        report = run_load(quiet)
        return report, flooding.result()


def measure(report: Report, mix: Mix, kind: str, batch_ms: float) -> None:
    """One kind of flood: alone, fair and unfair in turns."""
    p99: dict[str, list[float]] = {"alone": [], "fair": [], "unfair": []}
    total: dict[str, list[float]] = {"fair": [], "unfair": []}
    served: list[float] = []
    for _ in range(REPEATS):
        alone = mix.alone()
        p99["alone"].append(alone.percentile_ms(99))
        for name in ("fair", "unfair"):
            quiet, flood = mix.together(is_fair=name == "fair")
            p99[name].append(quiet.percentile_ms(99))
            total[name].append(quiet.rate + flood.rate)
            if name == "fair":
                served.append(quiet.num_answers / alone.num_answers)
                if quiet.num_errors:
                    report.note(f"{kind}: {quiet.num_errors} errors of the quiet tenant")
    allowed = Goal("<=", round(statistics.median(p99["alone"]) + 2 * batch_ms, 1))
    report.add(f"{kind}: quiet tenant's p99 alone", median(p99["alone"]), "ms")
    report.add(f"{kind}: quiet tenant's p99", median(p99["fair"]), "ms", allowed)
    report.add(f"{kind}: quiet tenant's p99, unfair queue", median(p99["unfair"]), "ms")
    report.add(f"{kind}: quiet tenant's answers / alone", median(served), "")
    throughput = ratio(total["fair"], total["unfair"])
    report.add(f"{kind}: throughput / unfair queue's", throughput, "", Goal(">=", 0.95))


def main() -> None:
    alone = statistics.median(inprocess_rate() for _ in range(3))
    batch_ms = BATCH_ROWS / alone * 1e3
    small = {"executor": {"HMI_DEVICE_ADAPTER_BYTES": SMALL_DEVICE_BYTES}}
    with (
        tempfile.TemporaryDirectory() as directory,
        Report("fairness") as report,
        LocalStack(Path(directory) / "data", port=0, env=small) as stack,
    ):
        report.note(f"a full batch takes {batch_ms:.0f} ms (executor alone)")
        quiet = make_tenant(stack, "quiet", NUM_RESIDENT, 0)
        flood = make_tenant(stack, "flood", NUM_RESIDENT, 1_000)
        cold = make_tenant(stack, "cold", NUM_COLD, 2_000)
        probe = LoadSpec(stack.address, quiet.key, quiet.models, TEXTS, "stream", concurrency=256)
        rate = QUIET_PART * run_load(probe).rate
        measure(report, Mix(stack, quiet, flood, rate), "flood", batch_ms)
        measure(report, Mix(stack, quiet, cold, rate), "cold models", batch_ms)


if __name__ == "__main__":
    main()
