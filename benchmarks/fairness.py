"""What a tenant within its share feels of one that floods, and what fairness costs in throughput.

A quiet tenant sends an open loop at a tenth of saturation; a flooding one keeps 20 times the items
in flight that its half of the device needs, first with resident models, then cycling through cold
ones. The unfair queue is the same load sent under one tenant's key: one queue, first come first
served. One MiniLM stack; clients and services share the machine's cores. The quiet tenant alone,
with the flood, and in the unfair queue take turns, and what the flood adds is told in full batches
of the same minute, as the executor's metrics time them: so it holds on a machine that others use.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import torch
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.load import LoadReport, LoadSpec, run_load, start_load
from benchmarks.report import Goal, Report, alternate, median, ratio
from benchmarks.served import Oracle
from benchmarks.serving import TEXTS, blobs, free_port, secret_of
from hmi.client import Client, Push
from hmi.stack import LocalStack
from services.executor.device import pick_limits

NUM_RESIDENT = 8
NUM_COLD = 400
QUIET_PART = 0.1
BATCH_TOKENS = pick_limits(0, 0, torch.device("cpu")).max_tokens
BATCH_ROWS = BATCH_TOKENS // 48  # a text has 48 tokens
FLOOD_STREAMS = 2  # a gateway takes 512 items of one stream at a time
FLOOD_IN_FLIGHT = 20 * BATCH_ROWS
# Room for about 60 of the models that follow each other.
SMALL_DEVICE_BYTES = str(12 << 20)


@dataclass(frozen=True)
class Tenant:
    """A key and the names of its models."""

    key: str
    models: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """One run.

    Attributes:
        rate: Answers a second to all.
        batch_ms: A full batch's time.
        busy: Batches that the executor computed at once, on the mean: what throughput owes to the
            queue, whatever the machine's speed at that moment.
        batch_tokens: Tokens of a batch.
    """

    quiet: LoadReport
    rate: float
    batch_ms: float
    busy: float
    batch_tokens: float


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
        oracle = Oracle()
        for index in (0, num_models - 1):
            oracle.check(client, models[index], seed + index, TEXTS[0])
    return Tenant(key, models)


class Mix:
    """A quiet and a flooding load, alone and together.

    Args:
        metrics_url: The executor's.
        rate: The quiet tenant's requests a second.
        seconds: How long a run counts.
    """

    def __init__(
        self, stack: LocalStack, metrics_url: str, quiet: Tenant, flood: Tenant, *, rate: float,
        seconds: float,
    ) -> None:  # fmt: skip
        self._metrics_url = metrics_url
        self._quiet = LoadSpec(
            stack.address, quiet.key, quiet.models, TEXTS, "arrivals",
            seconds=seconds, rate=rate, warmup_s=2.0,
        )  # fmt: skip
        self._floods = [
            LoadSpec(
                stack.address, flood.key, flood.models, TEXTS, "stream", seed=seed,
                concurrency=FLOOD_IN_FLIGHT // FLOOD_STREAMS, seconds=seconds, warmup_s=2.0,
            )
            for seed in range(FLOOD_STREAMS)
        ]  # fmt: skip

    def alone(self) -> Outcome:
        return self._run(self._quiet, [])

    def fair(self) -> Outcome:
        return self._run(self._quiet, self._floods)

    def unfair(self) -> Outcome:
        flood = self._floods[0]
        return self._run(
            dataclasses.replace(self._quiet, key=flood.key, models=flood.models), self._floods
        )

    def _run(self, quiet: LoadSpec, floods: list[LoadSpec]) -> Outcome:
        began, before = time.monotonic(), _sums(self._metrics_url)
        flooding = [start_load(flood) for flood in floods]
        report = run_load(quiet)
        rate = report.rate + sum(flood.result().rate for flood in flooding)
        wall, after = time.monotonic() - began, _sums(self._metrics_url)
        seconds, tokens, batches = (after[name] - before[name] for name in _SUMS)
        batch_ms = seconds / tokens * BATCH_TOKENS * 1e3
        return Outcome(report, rate, batch_ms, seconds / wall, tokens / batches)


_SUMS = ("hmi_step_seconds_sum", "hmi_batch_tokens_sum", "hmi_batch_tokens_count")


def _sums(url: str) -> Mapping[str, float]:
    """Seconds of all batches so far, their tokens, and how many they were."""
    with urlopen(url) as answer:
        families = text_string_to_metric_families(answer.read().decode())
    samples = [sample for family in families for sample in family.samples]
    return {sample.name: sample.value for sample in samples if sample.name in _SUMS}


def measure(report: Report, mix: Mix, kind: str, repeats: int) -> None:
    """One kind of flood: alone, fair and unfair in turns."""
    subjects = {"alone": mix.alone, "fair": mix.fair, "unfair": mix.unfair}
    runs = alternate(subjects, repeats=repeats, warmup=1)
    p99 = {name: [run.quiet.percentile_ms(99) for run in of] for name, of in runs.items()}
    for name, label in (("alone", " alone"), ("fair", ""), ("unfair", ", unfair queue")):
        report.add(f"{kind}: quiet tenant's p99{label}", median(p99[name]), "ms")
    batch_ms = [run.batch_ms for run in runs["fair"]]
    report.add(f"{kind}: a full batch", median(batch_ms), "ms")
    triples = zip(p99["fair"], p99["alone"], batch_ms, strict=True)
    added = [(fair - alone) / batch for fair, alone, batch in triples]
    report.add(
        f"{kind}: added to the quiet tenant's p99", median(added), "full batches", Goal("<=", 2.0)
    )
    served = [
        run.quiet.num_answers / (run.quiet.num_answers + run.quiet.num_errors)
        for run in runs["fair"]
    ]
    report.add(f"{kind}: quiet tenant's requests answered", median(served), "", Goal(">=", 1.0))
    throughput = ratio([run.rate for run in runs["fair"]], [run.rate for run in runs["unfair"]])
    report.add(f"{kind}: throughput / unfair queue's", throughput, "", Goal(">=", 0.95))
    for what, of in (("time in batches", "busy"), ("tokens of a batch", "batch_tokens")):
        fair, unfair = ([getattr(run, of) for run in runs[name]] for name in ("fair", "unfair"))
        report.add(f"{kind}: {what} / unfair queue's", ratio(fair, unfair), "")
    num_samples = sum(run.quiet.num_answers for run in runs["fair"])
    report.note(f"{kind}: {repeats} turns, {num_samples} of the quiet tenant's requests in all")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness", description=__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="turns, at least 7")
    parser.add_argument("--seconds", type=float, default=8.0, help="counted seconds of a run")
    options = parser.parse_args()
    port = free_port()
    executor = {"HMI_DEVICE_ADAPTER_BYTES": SMALL_DEVICE_BYTES, "HMI_METRICS_PORT": str(port)}
    with (
        tempfile.TemporaryDirectory() as directory,
        Report("fairness") as report,
        LocalStack(
            Path(directory) / "data", port=0, env={"executor": executor}, with_split_base=False
        ) as stack,
    ):
        tenants = {
            "flood": make_tenant(stack, "flood", NUM_RESIDENT, 1_000),
            "cold models": make_tenant(stack, "cold", NUM_COLD, 2_000),
        }
        quiet = make_tenant(stack, "quiet", NUM_RESIDENT, 0)
        probe = LoadSpec(stack.address, quiet.key, quiet.models, TEXTS, "stream", concurrency=256)
        rate = QUIET_PART * run_load(probe).rate
        url = f"http://127.0.0.1:{port}/metrics"
        for kind, flood in tenants.items():
            mix = Mix(stack, url, quiet, flood, rate=rate, seconds=options.seconds)
            measure(report, mix, kind, options.repeats)


if __name__ == "__main__":
    main()
