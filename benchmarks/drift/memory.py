"""What one more model takes that shares a domain: its adapter and its head, and no table.

Knows processes, their metrics and the client; does not know how an executor keeps anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.workload import Lora
from hmi.client import Client
from services.common.base_config import BaseConfig

_ANSWER_S = 2.0


@dataclass(frozen=True)
class Look:
    """An executor and a domain at one moment.

    Attributes:
        resident_bytes: Of the executor's process, what it maps from files left out: rows of tables
            are mapped, and come and go as they are read.
        device_bytes: `hmi_device_bytes` by kind, of all bases.
        table_rows: `hmi_plot_rows` in all.
        node_bytes: What the domain's own segments take, as `hmi domains stats` has it.
        version_bytes: What its models take, as `hmi domains stats` has it.
    """

    resident_bytes: int
    device_bytes: Mapping[str, float]
    table_rows: float
    node_bytes: int
    num_versions: int
    version_bytes: int

    @classmethod
    def of(cls, admin: Client, base: str, path: str, executor_pid: int) -> Look:
        """Look now."""
        nodes = {stats.domain.path: stats for stats in admin.list_domains(base)}
        stats, samples = nodes[path], _samples(executor_pid)
        kinds: dict[str, float] = {}
        for labels, value in samples.get("hmi_device_bytes", []):
            kinds[labels["kind"]] = kinds.get(labels["kind"], 0.0) + value
        memory = psutil.Process(executor_pid).memory_info()
        return cls(
            resident_bytes=memory.rss - memory.shared,
            device_bytes=kinds,
            table_rows=sum(value for _, value in samples.get("hmi_plot_rows", [])),
            node_bytes=stats.size_bytes,
            num_versions=stats.num_versions,
            version_bytes=stats.version_bytes,
        )


@dataclass(frozen=True)
class Growth:
    """Before and after models were registered and asked."""

    before: Look
    after: Look

    @property
    def num_models(self) -> int:
        return self.after.num_versions - self.before.num_versions

    @property
    def resident_bytes(self) -> float:
        """Of the executor's process, a model."""
        return (self.after.resident_bytes - self.before.resident_bytes) / self.num_models

    @property
    def version_bytes(self) -> float:
        """As `hmi domains stats` has them, a model."""
        return (self.after.version_bytes - self.before.version_bytes) / self.num_models


class _UpperLora(Lora):
    """A LoRA of some layers alone."""

    @property
    def config(self) -> dict[str, object]:
        layers = sorted({_layer(name) for name in self.tensors})
        return super().config | {"layers_to_transform": layers}


def adapters(config: BaseConfig, split: int, num: int) -> list[bytes]:
    """Distinct random LoRA classifiers on the layers that a split base computes."""
    made = []
    for seed in range(num):
        whole = Lora.random(config, seed)
        tensors = {name: array for name, array in whole.tensors.items() if _layer(name) >= split}
        made.append(_UpperLora(tensors, whole.classifier).blob())
    return made


def _layer(name: str) -> int:
    return int(name.split(".")[2])


def grow(
    admin: Client, base: str, path: str, tenant: str, blobs: Sequence[bytes], text: str,
    executor_pid: int, num_warm: int = 8,
) -> Growth:  # fmt: skip
    """Register versions that share a domain and ask each once; the first few are not counted."""
    client = admin.for_tenant(tenant)

    def ask(number: int) -> None:
        client.push_version(f"model-{number}", blobs[number], base=base, domain=path)
        client.predict(f"model-{number}", [text])

    for number in range(num_warm):
        ask(number)
    before = Look.of(admin, base, path, executor_pid)
    for number in range(num_warm, len(blobs)):
        ask(number)
    return Growth(before, Look.of(admin, base, path, executor_pid))


def _samples(pid: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """A service's metrics by name, from whichever of its ports serves them.

    Raises:
        LookupError: None does.
    """
    connections = psutil.Process(pid).net_connections()
    for port in [one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN]:
        try:
            with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_ANSWER_S) as page:
                text = page.read().decode()
        except (OSError, HTTPException, ValueError):  # another protocol speaks there
            continue
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found
    raise LookupError(f"process {pid} serves no metrics")
