"""Whether containers fit the services they run: settings, modules, ports, addresses, packages.

Each check returns failure lines; none runs a container.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from deploy.imports import normalised, third_party
from deploy.workloads import POD_IP, Document, Image, Workload
from services.common.config import ServiceSettings

_TORCHLESS = {"gateway", "knowledge_store"}
_ADDRESSES = ("HMI_KNOWLEDGE_ADDRESS", "HMI_ADVERTISE_ADDRESS", "HMI_REDIS_URL")


def check_image(root: Path, image: Image) -> Iterator[str]:
    """Modules exist, ports are exposed, the user is not root, packages are what is imported."""
    where = image.path.relative_to(root)
    for command in (image.command, image.health_command):
        module = command[command.index("-m") + 1] if "-m" in command else ""
        if not module:
            yield f"{where}: {list(command)} does not run `python -m MODULE`"
        elif not _is_runnable(module):
            yield f"{where}: python -m {module}: there is no such module to run"
        elif not _is_copied(root, image, module):
            yield f"{where}: {module} is not copied into the image"
    for variable in ("HMI_PORT", "HMI_METRICS_PORT"):
        port = image.env.get(variable, "")
        if not port.isdecimal() or int(port) not in image.ports:
            yield f"{where}: EXPOSE does not name {variable}={port}"
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", image.user):
        yield f"{where}: USER {image.user} is not a number other than root's"
    yield from _check_packages(root, image)


def _check_packages(root: Path, image: Image) -> Iterator[str]:
    requirements = image.path.with_suffix(".txt")
    where = requirements.relative_to(root)
    lines = requirements.read_text(encoding="utf-8").splitlines()
    listed = {normalised(line) for line in lines if line and not line.startswith("#")}
    needed: dict[str, str] = {}
    try:
        for entry in (f"services.{image.service}.__main__", "services.common.health"):
            needed.update(third_party(root, entry))
    except SyntaxError as error:
        yield f"{error.filename}:{error.lineno}: {error.msg}"
        return
    for name in sorted(needed.keys() - listed):
        yield f"{where}: {name} is missing; {needed[name]} imports it"
    for name in sorted(listed - needed.keys()):
        yield f"{where}: {name} is listed but services.{image.service} does not import it"
    if image.service in _TORCHLESS and "torch" in listed | needed.keys():
        yield f"{where}: torch belongs to the executor alone"


def _is_runnable(module: str) -> bool:
    try:
        spec = importlib.util.find_spec(module)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = importlib.util.find_spec(f"{module}.__main__")
    except ModuleNotFoundError:
        return False
    return spec is not None


def _is_copied(root: Path, image: Image, module: str) -> bool:
    path = root.joinpath(*module.split("."))
    return any(path.is_relative_to(root / copied) for copied in image.copied)


def check_settings(workload: Workload) -> Iterator[str]:
    """Every HMI_ variable is a setting of the service, and all together are accepted by it."""
    try:
        settings = settings_class(workload.image.service)
    except (ImportError, LookupError) as error:
        yield f"{workload.source}: no settings: {error}"
        return
    known = {f"HMI_{name.upper()}" for name in settings.model_fields}
    for name in sorted(workload.settings_env.keys() - known):
        yield f"{workload.source}: {name} is no setting of {settings.__name__}"
    with _environment(workload.settings_env):
        try:
            settings()
        except ValidationError as error:
            for problem in error.errors():
                name = "HMI_" + "_".join(str(part) for part in problem["loc"]).upper()
                yield f"{workload.source}: {name}: {problem['msg']}"


def settings_class(service: str) -> type[ServiceSettings]:
    """The one subclass of ServiceSettings that a service's `config.py` defines.

    Raises:
        ImportError: There is no `config.py`.
        LookupError: It defines none.
    """
    module = importlib.import_module(f"services.{service}.config")
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, ServiceSettings)
            and value.__module__ == module.__name__
        ):
            return value
    raise LookupError(f"{module.__name__} defines no ServiceSettings")


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """The process's environment with no HMI_ variables but these."""
    before = dict(os.environ)
    try:
        for name in [name for name in os.environ if name.startswith("HMI_")]:
            del os.environ[name]
        os.environ.update(variables)
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_ports(workloads: Sequence[Workload], others: Mapping[str, int]) -> Iterator[str]:
    """Probed, published and addressed ports are served.

    Args:
        workloads: Of one deployment.
        others: Names and ports of what is not ours (Redis).
    """
    served = {name: {port} for name, port in others.items()}
    for workload in workloads:
        env = workload.settings_env
        grpc_port = int(env["HMI_PORT"])
        served[workload.name] = {grpc_port}
        ports = {grpc_port, int(env["HMI_METRICS_PORT"])}
        for port in sorted((workload.ports | workload.probed_ports) - ports):
            yield f"{workload.source}: port {port} is not served (HMI_PORT={grpc_port})"
    for workload in workloads:
        own = {POD_IP: served[workload.name]}
        for variable in _ADDRESSES:
            value = workload.settings_env.get(variable, "")
            url = urlsplit(value if "//" in value else f"//{value}")
            if value and url.port not in {**served, **own}.get(url.hostname or "", set()):
                yield f"{workload.source}: {variable}={value}: nothing serves there"


def check_services(source: str, documents: Sequence[Document]) -> Iterator[str]:
    """Every Service's target is a named port of a workload it selects, under the same number."""
    pods = [
        document["spec"]["template"]
        for document in documents
        if document["kind"] in {"Deployment", "StatefulSet"}
    ]
    for document in documents:
        if document["kind"] != "Service":
            continue
        selector = document["spec"]["selector"].items()
        ports = {
            (port["name"], port["containerPort"])
            for pod in pods
            if selector <= pod["metadata"]["labels"].items()
            for container in pod["spec"]["containers"]
            for port in container["ports"]
        }
        for port in document["spec"]["ports"]:
            if (port["targetPort"], port["port"]) not in ports:
                name = document["metadata"]["name"]
                yield f"{source}: Service {name}: no selected pod serves {port['port']} as asked"


def check_secrets(source: str, documents: Sequence[Document], example: Document) -> Iterator[str]:
    """Every secret that is read is in the example, which holds no values."""
    keys = {(example["metadata"]["name"], key) for key in example["stringData"]}
    if any(example["stringData"].values()):
        yield f"{source}: the example of a secret holds a value"
    for document in documents:
        template = document.get("spec", {}).get("template", {})
        for container in template.get("spec", {}).get("containers", []):
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference and (reference["name"], reference["key"]) not in keys:
                    yield f"{source}: {variable['name']}: the example lacks {reference}"
