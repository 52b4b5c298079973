"""The checks of deployment files find what they are there to find."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import check, semantics
from deploy.workloads import Image, Workload, read_compose, read_image, read_manifests

DOCKER = check.ROOT / "deploy/docker"


@pytest.fixture
def images() -> dict[str, Image]:
    return {image.name: image for image in map(read_image, DOCKER.glob("*.Dockerfile"))}


@pytest.fixture
def gateway(images: dict[str, Image]) -> Workload:
    workloads, _ = read_compose(check.ROOT / "docker-compose.yml", images)
    return next(workload for workload in workloads if workload.name == "gateway")


def with_env(workload: Workload, **env: str) -> Workload:
    return dataclasses.replace(workload, env={**workload.env, **env})


def test_last_stage_of_a_dockerfile_is_read(images: dict[str, Image]) -> None:
    image = images["hmi-knowledge-store"]
    assert image.service == "knowledge_store"
    assert image.command == ("python", "-m", "services.knowledge_store")
    assert image.env["HMI_PORT"] == "50052"
    assert image.ports == {50052, 9090}
    assert image.user == "10001:10001"


def test_unknown_setting_is_named(gateway: Workload) -> None:
    failures = list(semantics.check_settings(with_env(gateway, HMI_CACHE_DIRECTORY="/x")))
    assert len(failures) == 1
    assert "HMI_CACHE_DIRECTORY" in failures[0]


def test_refused_value_is_named(gateway: Workload) -> None:
    failures = list(semantics.check_settings(with_env(gateway, HMI_METRICS_PORT="many")))
    assert len(failures) == 1
    assert "HMI_METRICS_PORT" in failures[0]


def test_missing_setting_is_named(gateway: Workload) -> None:
    env = {key: value for key, value in gateway.env.items() if key != "HMI_KNOWLEDGE_ADDRESS"}
    failures = list(semantics.check_settings(dataclasses.replace(gateway, env=env)))
    assert len(failures) == 1
    assert "HMI_KNOWLEDGE_ADDRESS" in failures[0]


def test_settings_of_the_shell_do_not_count(
    gateway: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMI_PORT", "not a port")
    assert list(semantics.check_settings(gateway)) == []


def test_address_where_nothing_serves_is_named(gateway: Workload) -> None:
    moved = with_env(gateway, HMI_KNOWLEDGE_ADDRESS="knowledge-store:50999")
    failures = list(semantics.check_ports([moved], {"knowledge-store": 50052}))
    assert len(failures) == 1
    assert "knowledge-store:50999" in failures[0]


def test_probed_port_that_is_not_served_is_named(gateway: Workload) -> None:
    probed = dataclasses.replace(gateway, probed_ports=frozenset({1234}))
    failures = list(semantics.check_ports([probed], {"knowledge-store": 50052}))
    assert len(failures) == 1
    assert "1234" in failures[0]


def test_image_that_runs_no_module_of_ours_or_as_root_is_refused(images: dict[str, Image]) -> None:
    image = images["hmi-gateway"]
    broken = dataclasses.replace(
        image, command=("python", "-m", "services.gatway"), user="root", ports=frozenset({9090})
    )
    failures = " ".join(semantics.check_image(check.ROOT, broken))
    for expected in ("services.gatway", "USER root", "HMI_PORT=50051"):
        assert expected in failures


def test_package_that_is_imported_but_not_installed_is_named(
    images: dict[str, Image], tmp_path: Path
) -> None:
    for folder in ("services", "hmi"):
        (tmp_path / folder).symlink_to(check.ROOT / folder)
    image = dataclasses.replace(images["hmi-gateway"], path=tmp_path / "gateway.Dockerfile")
    (tmp_path / "gateway.txt").write_text("torch\n", encoding="utf-8")
    failures = list(semantics.check_image(tmp_path, image))
    assert any("grpcio is missing" in line for line in failures)
    assert any("torch belongs to the executor alone" in line for line in failures)


def test_secret_with_a_value_and_secret_out_of_nowhere_are_refused() -> None:
    example = {"metadata": {"name": "s"}, "stringData": {"key": "hunter2"}}
    reference = {"name": "s", "key": "other"}
    variable = {"name": "A", "valueFrom": {"secretKeyRef": reference}}
    pod = {"spec": {"template": {"spec": {"containers": [{"env": [variable]}]}}}}
    assert len(list(semantics.check_secrets("x", [pod], example))) == 2


def test_variable_used_before_it_is_defined_stays_as_it_is(images: dict[str, Image]) -> None:
    container = {
        "image": "hmi-executor:1",
        "env": [
            {"name": "HMI_ADVERTISE_ADDRESS", "value": "$(POD_IP):50053"},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
    }
    pod = {"spec": {"containers": [container]}}
    document = {"kind": "Deployment", "metadata": {"name": "executor"}, "spec": {"template": pod}}
    [workload] = read_manifests("x", [document], images)
    assert workload.env["HMI_ADVERTISE_ADDRESS"] == "$(POD_IP):50053"
    assert len(list(semantics.check_ports([workload], {}))) == 1


def test_domains_update_themselves_where_deployed(images: dict[str, Image]) -> None:
    workloads, _ = read_compose(check.ROOT / "docker-compose.yml", images)
    for overlay in check.OVERLAYS:
        folder = str(check.ROOT / "deploy/k8s/overlays" / overlay)
        rendered = check.run(["kubectl", "kustomize", folder])
        documents = [one for one in yaml.safe_load_all(rendered.stdout) if one]
        workloads += read_manifests(overlay, documents, images)
    stores = [workload for workload in workloads if workload.name == "knowledge-store"]
    assert len(stores) == 1 + len(check.OVERLAYS)
    assert {store.env["HMI_DOMAIN_UPDATE_S"] for store in stores} == {"3600"}


def test_compose_file_that_starts_without_secrets_is_refused(
    images: dict[str, Image], tmp_path: Path
) -> None:
    text = (check.ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    path = tmp_path / "docker-compose.yml"
    path.write_text(text.replace("${HMI_SERVICE_TOKEN:?", "${HMI_SERVICE_TOKEN:-"), "utf-8")
    assert any("HMI_SERVICE_TOKEN" in line for line in check.check_compose(path, images))


def test_compose_schema_is_asked(images: dict[str, Image], tmp_path: Path) -> None:
    path = tmp_path / "docker-compose.yml"
    path.write_text("services: {gateway: {image: x, prots: []}}", encoding="utf-8")
    assert any("prots" in line for line in check.check_compose(path, images))


@pytest.mark.parametrize("overlay", check.OVERLAYS)
def test_pods_are_hardened(overlay: str) -> None:
    rendered = check.run(
        ["kubectl", "kustomize", str(check.ROOT / "deploy/k8s/overlays" / overlay)]
    )
    pods = [
        document["spec"]["template"]["spec"]
        for document in yaml.safe_load_all(rendered.stdout)
        if document["kind"] in {"Deployment", "StatefulSet"}
    ]
    assert len(pods) == 4
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"]
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    gpus = [
        c["resources"]["limits"].get("nvidia.com/gpu") for pod in pods for c in pod["containers"]
    ]
    assert gpus.count("1") == (overlay == "gpu")


def rendered(overlay: str) -> list[dict[str, Any]]:
    """An overlay's pods."""
    done = check.run(["kubectl", "kustomize", str(check.ROOT / "deploy/k8s/overlays" / overlay)])
    return [
        document["spec"] | {"name": document["metadata"]["name"]}
        for document in yaml.safe_load_all(done.stdout)
        if document["kind"] in {"Deployment", "StatefulSet"}
    ]


@pytest.mark.parametrize("overlay", check.OVERLAYS)
def test_services_are_probed_by_native_grpc(overlay: str, images: dict[str, Image]) -> None:
    probed = 0
    for workload in rendered(overlay):
        for container in workload["template"]["spec"]["containers"]:
            image = images.get(container["image"].rpartition("/")[2].partition(":")[0])
            if image is None or image.service is None:
                continue
            probed += 1
            port = int(image.env["HMI_PORT"])
            assert container["startupProbe"]["grpc"] == {"port": port}
            assert container["readinessProbe"]["grpc"] == {"port": port}
            assert container["livenessProbe"]["grpc"] == {"port": port, "service": "live"}
    assert probed == 3


@pytest.mark.parametrize("overlay", check.OVERLAYS)
def test_blobs_lie_on_a_volume_that_outlives_the_pod(overlay: str) -> None:
    [store] = [w for w in rendered(overlay) if "knowledge" in w["name"]]
    [claim] = store["volumeClaimTemplates"]
    assert claim["spec"]["resources"]["requests"]["storage"]
    [container] = store["template"]["spec"]["containers"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    env = {one["name"]: one.get("value") for one in container["env"]}
    assert env["HMI_DATA_DIR"] == mounts[claim["metadata"]["name"]]


def test_blobs_lie_on_a_named_volume_of_the_compose_file() -> None:
    compose = yaml.safe_load((check.ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    store = compose["services"]["knowledge-store"]
    assert f"blobs:{store['environment']['HMI_DATA_DIR']}" in store["volumes"]
    assert "blobs" in compose["volumes"]
