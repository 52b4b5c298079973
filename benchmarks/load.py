"""A load generator in a process of its own: closed loop at saturation, or open loop at a rate.

Sends prepared bytes and parses no answer, so that its own CPU time, which the machine's servers
lack, is small; it says how much it was. `python -m benchmarks.load` reads a LoadSpec as a line of
JSON and prints a LoadReport as JSON.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc.aio
import uvloop

from hmi.inference.v1 import inference_pb2 as pb

Request = tuple[bytes, list[tuple[str, str]]]  # a serialized message and its metadata

_SERVICE = "/hmi.inference.v1.InferenceService"


@dataclass(frozen=True)
class LoadSpec:
    """What to send.

    Attributes:
        models: Asked at random. `TENANT/MODEL` is asked for that tenant, by an admin's key.
        zipf: A model's share falls as its place among `models` to this power; 0 is as often each.
        mode: `predict` or `stream` (closed loop), or `arrivals` (open loop of Predict calls).
        concurrency: Calls, or stream items, in flight (closed loop).
        rate: Requests a second (open loop); `cv` is the coefficient of variation of the Gamma gaps.
        warmup_s: Seconds before counting begins.
    """

    address: str
    key: str
    models: tuple[str, ...]
    texts: tuple[str, ...]
    mode: str = "predict"
    tenant: str = ""
    concurrency: int = 64
    seconds: float = 6.0
    warmup_s: float = 1.0
    rate: float = 0.0
    cv: float = 1.0
    seed: int = 0
    zipf: float = 0.0

    def metadata(self, tenant: str = "") -> list[tuple[str, str]]:
        tenant = tenant or self.tenant
        entries = [("authorization", f"Bearer {self.key}")]
        return [*entries, ("x-hmi-tenant", tenant)] if tenant else entries

    def shares(self) -> list[float]:
        """How often each model is asked, relative to the first."""
        return [place**-self.zipf for place in range(1, len(self.models) + 1)]


@dataclass
class LoadReport:
    """What came back: requests answered in the counted time, and their latencies."""

    num_answers: int = 0
    num_errors: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.num_answers / self.seconds

    def percentile_ms(self, percent: float) -> float:
        """Nearest-rank percentile of latency."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def run_load(spec: LoadSpec) -> LoadReport:
    """Generate the load from another process and wait for its report."""
    return start_load(spec).result()


@dataclass(frozen=True)
class RunningLoad:
    """A load generator under way."""

    process: subprocess.Popen[str]

    def result(self) -> LoadReport:
        out, err = self.process.communicate(timeout=300)
        if self.process.returncode != 0:
            raise RuntimeError(f"the load generator failed: {err}")
        return LoadReport(**json.loads(out))


def start_load(spec: LoadSpec) -> RunningLoad:
    """Begin to generate load from another process."""
    command = [sys.executable, "-m", "benchmarks.load"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps(dataclasses.asdict(spec)) + "\n")
    process.stdin.flush()
    return RunningLoad(process)


class _Generator:
    """Sends until time is up. Answers in the warm-up are not counted."""

    def __init__(self, spec: LoadSpec) -> None:
        self._spec = spec
        self._rng = random.Random(spec.seed)
        self.report = LoadReport()
        self._begin = time.perf_counter() + spec.warmup_s
        self._end = self._begin + spec.seconds

    @property
    def is_over(self) -> bool:
        return time.perf_counter() >= self._end

    def requests(self) -> list[Request]:
        """Serialized Predict requests, to be sent in turn."""
        spec, rng = self._spec, self._rng
        models = rng.choices(spec.models, spec.shares(), k=max(512, 4 * len(spec.models)))
        made: list[Request] = []
        for name in models:
            tenant, _, model = name.rpartition("/")
            inputs = [pb.TextInput(text=rng.choice(spec.texts))]
            body = pb.PredictRequest(model=model, inputs=inputs).SerializeToString()
            made.append((body, spec.metadata(tenant)))
        return made

    def count(self, sent: float) -> None:
        """An answer came to what was (to be) sent at this time."""
        now = time.perf_counter()
        if self._begin <= now <= self._end:
            self.report.num_answers += 1
            self.report.latencies_ms.append((now - sent) * 1e3)

    async def predict(self, channel: grpc.aio.Channel) -> None:
        call = channel.unary_unary(f"{_SERVICE}/Predict")
        requests = itertools.cycle(self.requests())

        async def worker() -> None:
            while not self.is_over:
                await self._ask(call, next(requests), time.perf_counter())

        await asyncio.gather(*(worker() for _ in range(self._spec.concurrency)))

    async def _ask(
        self, call: grpc.aio.UnaryUnaryMultiCallable, request: Request, sent: float
    ) -> None:
        body, metadata = request
        try:
            await call(body, metadata=metadata)
        except grpc.aio.AioRpcError:
            self.report.num_errors += 1
        else:
            self.count(sent)

    async def arrivals(self, channel: grpc.aio.Channel) -> None:
        """Gamma arrivals; latency counts from the intended time, whatever came between."""
        spec, rng = self._spec, self._rng
        call = channel.unary_unary(f"{_SERVICE}/Predict")
        requests = self.requests()
        shape = 1 / spec.cv**2
        intended = time.perf_counter()
        tasks = []
        while intended < self._end:
            intended += rng.gammavariate(shape, 1 / (spec.rate * shape))
            await asyncio.sleep(max(0.0, intended - time.perf_counter()))
            tasks.append(asyncio.create_task(self._ask(call, rng.choice(requests), intended)))
        await asyncio.gather(*tasks)

    async def stream(self, channel: grpc.aio.Channel) -> None:
        spec, rng = self._spec, self._rng
        free = asyncio.Semaphore(spec.concurrency)
        sent: dict[int, float] = {}

        async def requests() -> AsyncIterator[pb.StreamPredictRequest]:
            item_id = 0
            while not self.is_over:
                await free.acquire()
                item_id += 1
                sent[item_id] = time.perf_counter()
                text = pb.TextInput(text=rng.choice(spec.texts))
                yield pb.StreamPredictRequest(
                    item_id=item_id, model=rng.choice(spec.models), input=text
                )

        call = channel.stream_stream(
            f"{_SERVICE}/StreamPredict",
            request_serializer=pb.StreamPredictRequest.SerializeToString,
            response_deserializer=pb.StreamPredictResponse.FromString,
        )
        async for response in call(requests(), metadata=spec.metadata()):
            begun = sent.pop(response.item_id)
            if response.HasField("error"):
                self.report.num_errors += 1
            else:
                self.count(begun)
            free.release()


async def _main(spec: LoadSpec) -> LoadReport:
    generator = _Generator(spec)
    modes = {
        "predict": generator.predict,
        "stream": generator.stream,
        "arrivals": generator.arrivals,
    }
    async with grpc.aio.insecure_channel(spec.address) as channel:
        await modes[spec.mode](channel)
    report = generator.report
    report.seconds = spec.seconds
    report.cpu_seconds = time.process_time() * spec.seconds / (spec.seconds + spec.warmup_s)
    return report


if __name__ == "__main__":
    given = json.loads(sys.stdin.readline())
    given["models"], given["texts"] = tuple(given["models"]), tuple(given["texts"])
    print(json.dumps(dataclasses.asdict(uvloop.run(_main(LoadSpec(**given))))))
