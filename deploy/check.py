"""Checks container and Kubernetes files by all that works without a container engine.

Run as `python -m deploy.check` from anywhere; prints a line a check, exits 1 if one fails. What an
image does once it is built, this cannot know.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import yaml

from deploy import semantics
from deploy.workloads import Image, read_compose, read_image, read_manifests

ROOT = Path(__file__).resolve().parent.parent
OVERLAYS = ("cpu", "gpu")
REQUIRED_OF_COMPOSE = ("HMI_SERVICE_TOKEN", "HMI_ADMIN_KEY")


def main() -> int:
    """Run every check; 1 if one found something."""
    paths = sorted((ROOT / "deploy/docker").glob("*.Dockerfile"))
    images = {image.name: image for image in map(read_image, paths)}
    checks: list[tuple[str, Iterator[str]]] = [
        *((f"{path.relative_to(ROOT)}", check_dockerfile(path)) for path in paths),
        *((f"{name} against its service", semantics.check_image(ROOT, image))
          for name, image in images.items()),
        ("docker-compose.yml", check_compose(ROOT / "docker-compose.yml", images)),
        *((f"deploy/k8s/overlays/{overlay}", check_overlay(overlay, images))
          for overlay in OVERLAYS),
    ]  # fmt: skip
    num_failures = 0
    for title, failures in checks:
        lines = list(failures)
        num_failures += len(lines)
        print(f"{'FAIL' if lines else 'ok  '} {title}")
        for line in lines:
            print(f"     {line}")
    return 1 if num_failures else 0


def check_dockerfile(path: Path) -> Iterator[str]:
    """hadolint's findings."""
    yield from _findings(["hadolint", "--no-color", str(path)])


def check_compose(path: Path, images: dict[str, Image]) -> Iterator[str]:
    """The Compose specification's schema; required secrets; then each of our services."""
    schema = ["check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    schema_failures = list(_findings(schema))
    if schema_failures:
        yield from schema_failures
        return
    text = path.read_text(encoding="utf-8")
    for name in REQUIRED_OF_COMPOSE:
        if f"${{{name}:?" not in text:
            yield f"{path.name}: {name} does not fail clearly when unset (${{{name}:?…}})"
    workloads, document = read_compose(path, images)
    services: dict[str, Any] = document["services"]
    for name, service in services.items():
        for dependency, how in service.get("depends_on", {}).items():
            if how["condition"] == "service_healthy" and not _has_health_check(
                services[dependency], images
            ):
                yield f"{path.name}: {name} waits for the health of {dependency}, which has none"
    for workload in workloads:
        yield from semantics.check_settings(workload)
    yield from semantics.check_ports(workloads, {"valkey": 6379})


def _has_health_check(service: dict[str, Any], images: dict[str, Image]) -> bool:
    image = images.get(service["image"].partition(":")[0])
    return "healthcheck" in service or (image is not None and bool(image.health_command))


def check_overlay(overlay: str, images: dict[str, Image]) -> Iterator[str]:
    """kustomize renders it, Kubernetes' schemas accept every object, and it fits the services."""
    folder = ROOT / "deploy/k8s/overlays" / overlay
    rendered = run(["kubectl", "kustomize", str(folder)])
    if rendered.returncode:
        yield from _lines(rendered)
        return
    documents = list(yaml.safe_load_all(rendered.stdout))
    for document in documents:
        yield from _schema_failures(document)
    source = f"k8s/{overlay}"
    workloads = read_manifests(source, documents, images)
    missing = images.keys() - {workload.image.name for workload in workloads}
    if missing:
        yield f"{source}: nothing runs {', '.join(sorted(missing))}"
    for workload in workloads:
        yield from semantics.check_settings(workload)
    yield from semantics.check_ports(workloads, {"valkey": 6379})
    yield from semantics.check_services(source, documents)
    example = yaml.safe_load((ROOT / "deploy/k8s/base/secret.example.yaml").read_text("utf-8"))
    yield from semantics.check_secrets(source, documents, example)


def _schema_failures(document: dict[str, Any]) -> Iterator[str]:
    name = f"{document['kind']}/{document['metadata']['name']}"
    try:
        kubernetes_validate.validate(document, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{name}: {'.'.join(map(str, error.path))}: {error.message}"


def _findings(command: Sequence[str]) -> Iterator[str]:
    result = run(command)
    if result.returncode:
        yield from _lines(result)


def _lines(result: subprocess.CompletedProcess[str]) -> list[str]:
    lines = (result.stdout + result.stderr).splitlines()
    return lines or [f"{result.args[0]}: exit status {result.returncode}, no output"]


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a tool, the virtual environment's own (pinned) before any other."""
    folders = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    tool = shutil.which(command[0], path=os.pathsep.join(folders))
    if tool is None:
        message = f"{command[0]} is not installed: make install"
        return subprocess.CompletedProcess(list(command), 127, "", message)
    return subprocess.run(
        [tool, *command[1:]], capture_output=True, text=True, check=False, timeout=120
    )


if __name__ == "__main__":
    sys.exit(main())
