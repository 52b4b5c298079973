"""Several gateways and executors around one store, as real processes, on the tiny base."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hmi.client import Client, Quota
from hmi.readiness import Readiness
from hmi.supervisor import Child, ChildSpec
from tests.tiny import write_base

TOKEN = "token-of-the-cluster"
ADMIN_KEY = "hmi_admin_key-of-the-cluster"
EXECUTOR = {"HMI_DEVICE": "cpu", "HMI_DTYPE": "float32", "HMI_NUM_THREADS": "1"}
_START_S = 60.0


def until(condition: Callable[[], bool], within_s: float = 30.0, *, every_s: float = 0.02) -> None:
    """Wait for what happens in another process."""
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every_s)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Process:
    """One service; it is started again when it dies, unless it was asked to."""

    child: Child
    address: str
    metrics_port: int

    @property
    def pid(self) -> int | None:
        return self.child.pid

    def send(self, number: signal.Signals) -> None:
        """A signal it is not spared."""
        assert self.pid is not None
        os.kill(self.pid, number)

    def kill_for_good(self) -> None:
        """SIGKILL, and no other life."""
        self.child.signal(signal.SIGKILL)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples; 0 if there are none, or nobody answers."""
        try:
            url = f"http://127.0.0.1:{self.metrics_port}/metrics"
            with urllib.request.urlopen(url, timeout=5) as page:
                text = page.read().decode()
        except OSError:
            return 0.0
        pattern = rf"^{name}(?:\{{[^}}]*\}})? (\S+)$"
        return sum(float(value) for value in re.findall(pattern, text, re.MULTILINE))


@dataclass(frozen=True)
class Cluster:
    """What a test talks to."""

    store: Process
    gateways: list[Process]
    executors: list[Process]

    def client(self, gateway: int, key: str = ADMIN_KEY) -> Client:
        return Client(self.gateways[gateway].address, key=key)

    def tenant(self, name: str, quota: Quota | None = None) -> str:
        """A new tenant's key, known to every gateway."""
        with self.client(0) as admin:
            created = admin.create_tenant(name, quota=quota)
        assert created.key is not None
        return created.key.secret

    def push(self, key: str, model: str, directory: Path) -> None:
        """A model's next version, known to every gateway."""
        with self.client(0, key) as client:
            number = client.push_version(model, directory, base="tiny").number
        for index in range(len(self.gateways)):
            with self.client(index, key) as client:
                until(lambda client=client: _last_version(client, model) == number)  # type: ignore[misc]

    def wait_until_connected(self) -> None:
        """Each gateway to each executor."""
        for gateway in self.gateways:
            until(lambda g=gateway: g.metric("hmi_executors_connected") == len(self.executors))  # type: ignore[misc]


def _last_version(client: Client, model: str) -> int:
    models = {found.name: found.last_version for found in client.list_models()}
    return models.get(model, 0)


@contextmanager
def running(
    directory: Path,
    *,
    num_gateways: int = 2,
    num_executors: int = 2,
    gateway_env: Mapping[str, str] | None = None,
    store_env: Mapping[str, str] | None = None,
    executor_env: Mapping[str, str] | None = None,
) -> Iterator[Cluster]:
    """A cluster that serves the base `tiny` until the block is left."""
    with ExitStack() as exits:

        def start(name: str, module: str, env: Mapping[str, str]) -> Process:
            port, metrics_port = free_port(), free_port()
            common = {
                "HMI_SERVICE_TOKEN": TOKEN, "HMI_PORT": str(port), "HMI_DRAIN_S": "0.5",
                "HMI_METRICS_PORT": str(metrics_port), "HMI_PARENT_PID": str(os.getpid()),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            }  # fmt: skip
            log = directory / f"{name}.log"
            spec = ChildSpec(name, f"services.{module}", {**os.environ, **common, **env}, log)
            child = Child(spec, lambda line: None)
            exits.callback(child.stop, 5.0)
            child.start()
            return Process(child, f"127.0.0.1:{port}", metrics_port)

        data_dir = directory / "data"
        own_env = {"HMI_DATA_DIR": str(data_dir), "HMI_ADMIN_KEY": ADMIN_KEY}
        store = start("knowledge_store", "knowledge_store", own_env | dict(store_env or {}))
        store.child.wait_ready(_START_S)

        def member(kind: str, number: int, env: Mapping[str, str]) -> Process:
            cache_dir = str(directory / f"cache-{kind}-{number}")
            common = {"HMI_KNOWLEDGE_ADDRESS": store.address, "HMI_CACHE_DIR": cache_dir}
            return start(f"{kind}-{number}", kind, {**common, **env})

        gateways = [member("gateway", n, gateway_env or {}) for n in range(num_gateways)]
        of_executors = EXECUTOR | dict(executor_env or {})
        executors = [member("executor", n, of_executors) for n in range(num_executors)]
        for process in (*gateways, *executors):
            process.child.wait_ready(_START_S)
        cluster = Cluster(store, gateways, executors)
        with cluster.client(0) as admin:
            base = admin.add_base("tiny", write_base(directory / "base"))
        waiting = Readiness(time.monotonic() + _START_S, lambda: None)
        waiting.for_executor(store.address, TOKEN, base.digest)
        cluster.wait_until_connected()
        yield cluster
