"""Reads Dockerfiles, the compose file and rendered manifests into one form: workloads.

Knows the three notations; does not judge what they say.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# What stands for values that only a deployment has.
SECRET = "hmi_admin_" + "0" * 43
POD_IP = "10.0.0.1"

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Image:
    """What a Dockerfile makes of its last stage."""

    path: Path
    env: dict[str, str]
    ports: frozenset[int]
    copied: tuple[str, ...]
    command: tuple[str, ...]
    health_command: tuple[str, ...]
    user: str

    @property
    def service(self) -> str:
        """The service's package below `services`."""
        return self.path.stem

    @property
    def name(self) -> str:
        """The image's name, without a tag."""
        return "hmi-" + self.service.replace("_", "-")


@dataclass(frozen=True)
class Workload:
    """One container as some file wants it run."""

    source: str
    name: str
    image: Image
    env: dict[str, str]
    ports: frozenset[int]
    probed_ports: frozenset[int] = field(default_factory=frozenset)

    @property
    def settings_env(self) -> dict[str, str]:
        """The image's and the deployment's HMI_ variables."""
        merged = {**self.image.env, **self.env}
        return {key: value for key, value in merged.items() if key.startswith("HMI_")}


def read_image(path: Path) -> Image:
    """The last stage of a Dockerfile."""
    env: dict[str, str] = {}
    ports: set[int] = set()
    copied: list[str] = []
    command: Sequence[str] = ()
    health: Sequence[str] = ()
    user = "root"
    for keyword, rest in _instructions(path):
        if keyword == "FROM":
            env, ports, copied, user = {}, set(), [], "root"
        elif keyword == "ENV":
            for word in shlex.split(rest):
                name, _, value = word.partition("=")
                env[name] = value
        elif keyword == "EXPOSE":
            ports.update(int(port) for port in rest.split())
        elif keyword == "COPY" and "--from=" not in rest:
            copied.extend(rest.split()[:-1])
        elif keyword == "USER":
            user = rest
        elif keyword == "CMD":
            command = json.loads(rest)
        elif keyword == "HEALTHCHECK":
            health = json.loads(rest.partition("CMD")[2])
    return Image(path, env, frozenset(ports), tuple(copied), tuple(command), tuple(health), user)


def _instructions(path: Path) -> Iterator[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        keyword, _, rest = line.strip().partition(" ")
        if keyword:
            yield keyword.upper(), rest.strip()


def read_compose(path: Path, images: Mapping[str, Image]) -> tuple[list[Workload], Document]:
    """The compose services that run our images, and the whole document."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    workloads = []
    for name, service in document["services"].items():
        image = images.get(service["image"].partition(":")[0])
        if image is None:
            continue
        env = {key: _interpolated(value) for key, value in service.get("environment", {}).items()}
        ports = {int(port.rpartition(":")[2]) for port in service.get("ports", [])}
        workloads.append(Workload(f"{path.name}: {name}", name, image, env, frozenset(ports)))
    return workloads, document


def _interpolated(value: str) -> str:
    """`${A:-b}` becomes b, `${A:?message}` a secret."""
    value = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value)
    return re.sub(r"\$\{\w+:\?[^}]*\}", SECRET, value)


def read_manifests(
    source: str, documents: Sequence[Document], images: Mapping[str, Image]
) -> list[Workload]:
    """The containers of rendered manifests that run our images."""
    config_maps = {
        document["metadata"]["name"]: document.get("data", {})
        for document in documents
        if document["kind"] == "ConfigMap"
    }
    workloads = []
    for document in documents:
        if document["kind"] not in {"Deployment", "StatefulSet"}:
            continue
        for container in document["spec"]["template"]["spec"]["containers"]:
            image = images.get(container["image"].partition(":")[0])
            if image is not None:
                name = document["metadata"]["name"]
                workloads.append(
                    _workload(f"{source}: {name}", name, container, image, config_maps)
                )
    return workloads


def _workload(
    source: str,
    name: str,
    container: Document,
    image: Image,
    config_maps: Mapping[str, Mapping[str, str]],
) -> Workload:
    env: dict[str, str] = {}
    for reference in container.get("envFrom", []):
        env.update(config_maps[reference["configMapRef"]["name"]])
    for variable in container.get("env", []):
        value = variable.get("value") or _stand_in(variable["valueFrom"])
        # As the kubelet does: only variables that stand before are known.
        env[variable["name"]] = re.sub(
            r"\$\((\w+)\)", lambda match: env.get(match[1], match[0]), value
        )
    probes = [
        probe["grpc"]["port"]
        for key in ("startupProbe", "readinessProbe", "livenessProbe")
        if (probe := container.get(key)) and "grpc" in probe
    ]
    ports = {port["containerPort"] for port in container.get("ports", [])}
    return Workload(source, name, image, env, frozenset(ports), frozenset(probes))


def _stand_in(value_from: Document) -> str:
    if "fieldRef" in value_from:
        return POD_IP
    return SECRET if "secretKeyRef" in value_from else "1"
