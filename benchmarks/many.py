"""Ten thousand models behind one executor: what they take, and what asking them all costs.

A local stack with MiniLM; 100 tenants with 100 LoRA models each (r = 8, query and value, random and
distinct), registered over bulk streams. Clients, gateway, executor and store share this machine's
cores. Answers of some models are first checked against one computed in this process.
"""

from __future__ import annotations

import argparse
import random
import re
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

from benchmarks.load import LoadSpec, run_load
from benchmarks.report import Estimate, Report, median, ratio
from benchmarks.served import Oracle
from benchmarks.serving import TEXTS, free_port
from hmi.client import Client, Push
from hmi.stack import LocalStack

NUM_TENANTS, MODELS_EACH = 100, 100
NUM_CHECKED = 25
REPEATS = 5
IN_FLIGHT = 256
HOT = 16


def name_of(number: int) -> tuple[str, str]:
    """Tenant and model of a number: neighbours are of different tenants."""
    return f"tenant-{number % NUM_TENANTS}", f"model-{number // NUM_TENANTS}"


class Many:
    """The stack, and how it is asked."""

    def __init__(self, stack: LocalStack, metrics_port: int, num_models: int) -> None:
        self.stack = stack
        self.num_models = num_models
        self._metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        self._oracle = Oracle()

    def register(self) -> float:
        """All models, a stream a tenant; the seconds that the streams took."""
        seconds = 0.0
        with Client(self.stack.address, key=self.stack.admin_key) as admin:
            for first in range(min(NUM_TENANTS, self.num_models)):
                numbers = range(first, self.num_models, NUM_TENANTS)
                tenant, _ = name_of(first)
                admin.create_tenant(tenant)
                pushes = [
                    Push(name_of(number)[1], self._oracle.lora(number).blob()) for number in numbers
                ]
                began = time.perf_counter()
                outcomes = admin.for_tenant(tenant).push_versions(pushes)
                seconds += time.perf_counter() - began
                if any(outcome.error is not None for outcome in outcomes):
                    raise RuntimeError("a version was refused")
        return seconds

    def check(self) -> None:
        """Digest and scores of some models against what they must be."""
        with Client(self.stack.address, key=self.stack.admin_key) as admin:
            for number in random.Random(0).sample(range(self.num_models), NUM_CHECKED):
                tenant, model = name_of(number)
                self._oracle.check(admin.for_tenant(tenant), model, number, TEXTS[0])

    def rate(self, models: range, zipf: float, seconds: float) -> tuple[float, float]:
        """Answers a second, and the share of requests that had to load an adapter."""
        names = tuple("/".join(name_of(number)) for number in models)
        loads = self.num_loads()
        load = run_load(
            LoadSpec(
                self.stack.address, self.stack.admin_key, names, TEXTS, "predict",
                concurrency=IN_FLIGHT, seconds=seconds, zipf=zipf,
            )
        )  # fmt: skip
        if load.num_errors or not load.num_answers:
            raise RuntimeError(f"{load.num_errors} errors, {load.num_answers} answers")
        answered = load.rate * (seconds + 1.0)  # with the warm-up's second
        return load.rate, (self.num_loads() - loads) / answered

    def num_loads(self) -> float:
        """Adapters that came into device memory so far."""
        with urllib.request.urlopen(self._metrics) as page:
            text = page.read().decode()
        pattern = r'^hmi_adapter_load_seconds_count\{[^}]*tier="device"[^}]*\} (\S+)$'
        return sum(float(count) for count in re.findall(pattern, text, re.MULTILINE))

    def memory(self) -> Iterator[tuple[str, float]]:
        """Each process's resident MB."""
        for name, pid in self.stack.pids.items():
            yield name, psutil.Process(pid).memory_info().rss / 1e6


def measure(report: Report, many: Many, seconds: float) -> None:
    before = dict(many.memory())
    report.add("registering all models in bulk", _exact(many.register()), "s")
    many.check()
    for name, resident_mb in many.memory():
        grown = (resident_mb - before[name]) * 1e6 / many.num_models
        report.add(f"{name}: memory", _exact(resident_mb), "MB")
        report.add(f"{name}: grown by, a model", _exact(grown / 1e3), "kB")
    traffic = {
        f"the same {HOT} models": (range(HOT), 0.0),
        "all models, Zipf 1": (range(many.num_models), 1.0),
        "all models, equally often": (range(many.num_models), 0.0),
    }
    rates: dict[str, list[float]] = {name: [] for name in traffic}
    colds: dict[str, list[float]] = {name: [] for name in traffic}
    for _ in range(REPEATS):
        for name, (models, zipf) in traffic.items():
            rate, cold = many.rate(models, zipf, seconds)
            rates[name].append(rate)
            colds[name].append(100 * cold)
    hot = rates[f"the same {HOT} models"]
    for name in traffic:
        report.add(f"{name}: answers", median(rates[name]), "/s")
        report.add(f"{name}: requests that load an adapter", median(colds[name]), "%")
        if rates[name] is not hot:
            report.add(f"{name} / the same {HOT}", ratio(rates[name], hot), "")


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.many", description=__doc__)
    parser.add_argument("--models", type=int, default=NUM_TENANTS * MODELS_EACH)
    parser.add_argument("--seconds", type=float, default=6.0, help="of load, each time")
    parser.add_argument("--adapter-mb", type=int, default=512, help="the executor's device memory")
    options = parser.parse_args()
    port = free_port()
    executor = {
        "HMI_METRICS_PORT": str(port),
        "HMI_DEVICE_ADAPTER_BYTES": str(options.adapter_mb << 20),
    }
    with (
        tempfile.TemporaryDirectory() as directory,
        Report("many") as report,
        LocalStack(
            Path(directory) / "data", port=0, env={"executor": executor}, with_split_base=False
        ) as stack,
    ):
        report.note(
            f"{options.models:,} models; adapters may take {options.adapter_mb} MiB of device "
            f"memory; {IN_FLIGHT} calls in flight"
        )
        measure(report, Many(stack, port, options.models), options.seconds)


if __name__ == "__main__":
    main()
