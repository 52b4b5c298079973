"""What the path through gRPC costs: throughput against the executor alone, latency, start, pushes.

One MiniLM stack on this machine; clients, gateway, executor and store share its cores. The executor
alone is the same code fed in its own process (`benchmarks/inprocess.py`).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import psutil

from benchmarks.load import LoadReport, LoadSpec, run_load
from benchmarks.report import Goal, Report, alternate, median, ratio
from benchmarks.served import Oracle
from benchmarks.starting import start
from benchmarks.workload import Lora
from hmi.bases import minilm_directory
from hmi.client import Client, CreatedTenant, Push
from hmi.executor.v1 import executor_pb2 as executor_pb
from hmi.executor.v1.executor_pb2_grpc import ExecutorServiceStub
from hmi.stack import LocalStack
from services.common.base_config import BaseConfig
from services.common.knowledge import open_channel

NUM_MODELS = 16
REPEATS = 7
NUM_LATENCIES = 200
NUM_BULK = 1_000
_SENTENCES = (
    "time year people way day man thing woman life child world school state family student group",
    "country problem hand part place case week company system program question work government",
    "number night point home water room mother area money story fact month lot right study book",
    "eye job word business issue side kind head house service friend father power hour game",
)
WORDS = " ".join(_SENTENCES).split()


def text_of_48_tokens(seed: int) -> str:
    """46 words of one token each; [CLS] and [SEP] make 48."""
    return " ".join(random.Random(seed).sample(WORDS, 46))


TEXTS = tuple(text_of_48_tokens(seed) for seed in range(64))


def secret_of(created: CreatedTenant) -> str:
    """A new tenant's first key."""
    if created.key is None:
        raise RuntimeError("the tenant was there before")
    return created.key.secret


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def blobs(count: int, seed: int = 0) -> list[bytes]:
    """Distinct random LoRA versions of MiniLM."""
    import json

    config = BaseConfig.from_hf(json.loads((minilm_directory() / "config.json").read_text()))
    return [Lora.random(config, seed + index).blob() for index in range(count)]


class Bench:
    """A running stack with pushed models."""

    def __init__(self, stack: LocalStack, executor_port: int) -> None:
        self.stack = stack
        self.executor_address = f"127.0.0.1:{executor_port}"
        self.models = tuple(f"m{index}" for index in range(NUM_MODELS))
        with Client(stack.address, key=stack.admin_key) as admin:
            self.key = secret_of(admin.create_tenant("bench"))
        with Client(stack.address, key=self.key) as client:
            pushes = [
                Push(name, blob) for name, blob in zip(self.models, blobs(NUM_MODELS), strict=True)
            ]
            for outcome in client.push_versions(pushes):
                if outcome.error is not None:
                    raise outcome.error
            oracle = Oracle()
            for seed, name in enumerate(self.models):
                oracle.check(client, name, seed, TEXTS[0])

    def spec(self, mode: str, *, concurrency: int = 64, seconds: float = 5.0) -> LoadSpec:
        return LoadSpec(
            self.stack.address, self.key, self.models, TEXTS, mode, "", concurrency, seconds
        )

    def cpu_seconds(self) -> dict[str, float]:
        """CPU seconds each process has used since its start."""
        used = {}
        for name, pid in self.stack.pids.items():
            times = psutil.Process(pid).cpu_times()
            used[name] = times.user + times.system
        return used


def inprocess_rate() -> float:
    """Items a second of the executor alone, at saturation."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.inprocess"], check=True, capture_output=True, text=True
    )
    return float(done.stdout.split()[-1])


def throughput(report: Report, bench: Bench) -> None:
    """Predict and StreamPredict against the executor alone, in turns; the latter twice, for the
    noise floor.

    As many calls are in flight as the executor alone has items: with fewer, batches are not full.
    """
    cpu: dict[str, dict[str, list[float]]] = {"predict": {}, "stream": {}}

    def served(mode: str) -> float:
        before = bench.cpu_seconds()
        load = run_load(bench.spec(mode, concurrency=256))
        after = bench.cpu_seconds()
        _check(load)
        answered = load.rate * (load.seconds + 1.0)  # the warm-up second costs CPU too
        shares = {name: (after[name] - before[name]) / answered for name in before}
        shares["load generator"] = load.cpu_seconds / load.num_answers
        for name, used in shares.items():
            cpu[mode].setdefault(name, []).append(used * 1e3)
        return load.rate

    subjects: dict[str, Callable[[], float]] = {
        "alone": inprocess_rate,
        "predict": partial(served, "predict"),
        "stream": partial(served, "stream"),
        "alone again": inprocess_rate,
    }
    rates = alternate(subjects, repeats=REPEATS, warmup=1)
    alone = rates["alone"]
    report.add("executor alone", median(alone), "items/s")
    report.add("Predict", median(rates["predict"]), "items/s")
    report.add("StreamPredict", median(rates["stream"]), "items/s")
    report.add("A/A: executor alone", ratio(rates["alone again"], alone), "")
    report.add("Predict / executor alone", ratio(rates["predict"], alone), "", Goal(">=", 0.7))
    report.add(
        "StreamPredict / executor alone", ratio(rates["stream"], alone), "", Goal(">=", 0.85)
    )
    for mode, processes in cpu.items():
        for name, used_ms in processes.items():
            report.add(f"CPU a request, {mode}, {name}", median(used_ms), "ms")


def _check(load: LoadReport) -> None:
    if load.num_errors or not load.num_answers:
        raise RuntimeError(f"{load.num_errors} errors, {load.num_answers} answers")


def added_latency(report: Report, bench: Bench) -> None:
    """A lone Predict against the same item put straight into the executor, in turns."""
    through, direct = asyncio.run(_latencies(bench))
    added = [a - b for a, b in zip(through, direct, strict=True)]
    report.add("latency p50 through the gateway", median(through), "ms")
    report.add("latency p50 of the executor", median(direct), "ms")
    report.add("latency p50 added by the gateway", median(added), "ms", Goal("<=", 5.0))


async def _latencies(bench: Bench) -> tuple[list[float], list[float]]:
    from hmi.client import AsyncClient

    through, direct = [], []
    async with (
        AsyncClient(bench.stack.address, key=bench.key) as client,
        open_channel(bench.executor_address, bench.stack.service_token) as channel,
    ):
        submit = await _template(bench, client)
        outbox: asyncio.Queue[executor_pb.ExecuteRequest] = asyncio.Queue()

        async def requests() -> AsyncIterator[executor_pb.ExecuteRequest]:
            hello = executor_pb.Command(hello=executor_pb.Hello(gateway_id="bench"))
            yield executor_pb.ExecuteRequest(commands=[hello])
            while True:
                yield await outbox.get()

        call = ExecutorServiceStub(channel).Execute(requests())
        for index in range(NUM_LATENCIES):
            began = time.perf_counter()
            await client.predict(bench.models[0], TEXTS[index % len(TEXTS)])
            through.append((time.perf_counter() - began) * 1e3)
            submit.item_id = index + 1
            began = time.perf_counter()
            command = executor_pb.Command(submit=submit)
            await outbox.put(executor_pb.ExecuteRequest(commands=[command]))
            while not await _is_answer(call, index + 1):
                pass
            direct.append((time.perf_counter() - began) * 1e3)
        call.cancel()
    return through[10:], direct[10:]


async def _is_answer(call: object, item_id: int) -> bool:
    response = await call.read()  # type: ignore[attr-defined]
    events = [news.event for news in response.news if news.HasField("event")]
    if any(event.HasField("error") for event in events):
        raise RuntimeError(events)
    return any(event.item_id == item_id for event in events)


async def _template(bench: Bench, client: object) -> executor_pb.Submit:
    from tokenizers import Tokenizer

    answer = await client.predict(bench.models[0], TEXTS[0])  # type: ignore[attr-defined]
    origin = answer.provenance
    base = await client.get_base(origin.base)  # type: ignore[attr-defined]
    tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
    tokenizer.no_padding()
    return executor_pb.Submit(
        key=executor_pb.ModelKey(
            tenant=origin.tenant,
            model=origin.model,
            version=origin.version,
            digest=origin.digest,
            base_digest=origin.base_digest,
        ),
        tokenizer_digest=base.tokenizer_digest,
        token_ids=tokenizer.encode(TEXTS[0]).ids,
    )


def latency_under_load(report: Report, bench: Bench) -> None:
    """Open loop at parts of saturation, from the intended time."""
    saturation = statistics.median(run_load(bench.spec("predict")).rate for _ in range(3))
    for part, cv in itertools.product((0.5, 0.7, 0.9), (1.0, 4.0)):
        spec = LoadSpec(
            bench.stack.address, bench.key, bench.models, TEXTS, "arrivals",
            seconds=8.0, rate=saturation * part, cv=cv,
        )  # fmt: skip
        load = run_load(spec)
        where = f"at {part:.0%} of saturation, CV {cv:g}"
        report.add(f"latency p50 {where}", median(load.latencies_ms), "ms")
        tail = ", ".join(f"p{p} {load.percentile_ms(p):.1f} ms" for p in (95, 99))
        report.note(f"{where}: {tail}, {load.num_answers} samples, {load.num_errors} errors")


def bulk(report: Report, bench: Bench) -> None:
    """Registering many models over one stream."""
    seconds = []
    with Client(bench.stack.address, key=bench.stack.admin_key) as admin:
        for turn in range(REPEATS):
            tenant = f"bulk-{turn}"
            admin.create_tenant(tenant)
            pushes = [
                Push(f"m{index}", blob)
                for index, blob in enumerate(blobs(NUM_BULK, seed=10_000 * (turn + 1)))
            ]
            began = time.perf_counter()
            outcomes = admin.for_tenant(tenant).push_versions(pushes)
            seconds.append(time.perf_counter() - began)
            if any(outcome.error is not None for outcome in outcomes):
                raise RuntimeError("a version was refused")
            admin.delete_tenant(tenant)
    report.add(f"registering {NUM_BULK} models in bulk", median(seconds), "s")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Report("serving") as report:
        data_dir = Path(directory) / "data"
        port = free_port()
        with LocalStack(
            data_dir, port=0, env={"executor": {"HMI_PORT": str(port)}}, with_split_base=False
        ) as stack:
            bench = Bench(stack, port)
            throughput(report, bench)
            added_latency(report, bench)
            latency_under_load(report, bench)
            bulk(report, bench)
        start(report, data_dir, TEXTS[0])


if __name__ == "__main__":
    main()
