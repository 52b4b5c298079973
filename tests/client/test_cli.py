"""The command line: exit status, one line on stderr, JSON, where address and key come from."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from hmi.admin.v1 import model_pb2, model_pb2_grpc, resources_pb2, tenant_pb2, tenant_pb2_grpc
from hmi.cli.main import run
from hmi.inference.v1 import inference_pb2 as pb
from hmi.inference.v1 import inference_pb2_grpc


class _Gateway(
    inference_pb2_grpc.InferenceServiceServicer,
    tenant_pb2_grpc.TenantServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
):
    """A few RPCs, and the metadata they came with."""

    def __init__(self) -> None:
        self.metadata: dict[str, str | bytes] = {}
        self.traffic: dict[int, int] = {}

    def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        self.metadata = dict(context.invocation_metadata())
        if request.model == "missing":
            context.abort(grpc.StatusCode.NOT_FOUND, "no model missing")
        scores = [pb.LabelScore(label="good", score=0.75), pb.LabelScore(label="bad", score=0.25)]
        answer = pb.Classification(label="good", score=0.75, scores=scores)
        return pb.PredictResponse(
            provenance=pb.Provenance(tenant="acme", model=request.model, version=2, digest="ab"),
            predictions=[pb.Prediction(classification=answer) for _ in request.inputs],
        )

    def CreateTenant(self, request: Any, context: Any) -> tenant_pb2.CreateTenantResponse:
        key = resources_pb2.ApiKey(key_id="k1", tenant=request.tenant.name, role="ROLE_TENANT")
        return tenant_pb2.CreateTenantResponse(
            tenant=request.tenant, api_key=key, secret="hmi_k1_secret"
        )

    def SetTraffic(self, request: Any, context: Any) -> model_pb2.SetTrafficResponse:
        self.traffic = {target.version: target.percent for target in request.traffic}
        model = resources_pb2.Model(name=request.model, traffic=request.traffic)
        return model_pb2.SetTrafficResponse(model=model)

    def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:
        first = not request.page_token
        model = resources_pb2.Model(name="one" if first else "two")
        return model_pb2.ListModelsResponse(models=[model], next_page_token="x" if first else "")


@pytest.fixture
def gateway() -> _Gateway:
    return _Gateway()


@pytest.fixture
def address(gateway: _Gateway) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(gateway, server)
    tenant_pb2_grpc.add_TenantServiceServicer_to_server(gateway, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(gateway, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def target(address: str) -> list[str]:
    return ["--address", address, "--key", "secret"]


def test_prediction_as_json(target: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "--model", "m", "a text", "another", "--json", *target]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["provenance"]["version"] == 2
    assert [one["label"] for one in answer["predictions"]] == ["good", "good"]


def test_prediction_as_a_table(target: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "--model", "m", "[bold]a text[/bold]", *target]) == 0
    out = capsys.readouterr().out
    assert "[bold]a text[/bold]" in out  # the text is no markup
    assert "0.75" in out


def test_new_key_is_all_that_stdout_holds(
    target: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["tenants", "create", "acme", *target]) == 0
    assert capsys.readouterr().out == "hmi_k1_secret\n"


def test_every_page_is_listed(target: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list", "--json", *target]) == 0
    assert [model["name"] for model in json.loads(capsys.readouterr().out)] == ["one", "two"]


def test_traffic_split(target: list[str], gateway: _Gateway) -> None:
    assert run(["models", "traffic", "m", "1=90", "2=10", *target]) == 0
    assert gateway.traffic == {1: 90, 2: 10}


def test_tenant_is_sent_as_metadata(target: list[str], gateway: _Gateway) -> None:
    assert run(["predict", "--model", "m", "text", "--tenant", "acme", *target]) == 0
    assert gateway.metadata["x-hmi-tenant"] == "acme"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["predict", "--model", "missing", "text"], 1),
        (["models", "traffic", "m", "1:90"], 1),
        (["keys", "create"], 1),
        (["models", "push", "/nonexistent", "--name", "m"], 1),
        (["predict", "text"], 2),
        (["nonsense"], 2),
        (["models"], 2),
        (["models", "activate", "m", "first"], 2),
    ],
)
def test_failure_is_a_status_and_one_line(
    arguments: list[str], status: int, target: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = target if len(arguments) > 1 else []
    assert run([*arguments, *options]) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_data_directory_names_address_and_key(
    address: str, gateway: _Gateway, tmp_path: Path
) -> None:
    (tmp_path / "address").write_text(address + "\n")
    (tmp_path / "admin.key").write_text("hmi_admin_x\n")
    assert run(["predict", "--model", "m", "text", "--data-dir", str(tmp_path)]) == 0
    assert gateway.metadata["authorization"] == "Bearer hmi_admin_x"


def test_admin_key_of_the_directory_is_not_sent_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "admin.key").write_text("hmi_admin_x\n")
    arguments = ["models", "list", "--address", "192.0.2.1:50051", "--data-dir", str(tmp_path)]
    assert run(arguments) == 1
    assert "no key" in capsys.readouterr().err


def test_environment_names_address_and_key(
    address: str, gateway: _Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMI_ADDRESS", address)
    monkeypatch.setenv("HMI_API_KEY", "from the environment")
    assert run(["predict", "--model", "m", "text"]) == 0
    assert gateway.metadata["authorization"] == "Bearer from the environment"


def test_no_stack_in_the_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "list", "--data-dir", str(tmp_path)]) == 1
    assert "hmi up" in capsys.readouterr().err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    for name in ("up", "tenants", "keys", "models", "predict", "train", "bases"):
        assert name in out


def test_threads_end_with_the_command(target: list[str]) -> None:
    assert run(["models", "list", *target]) == 0
    assert not [one for one in threading.enumerate() if one.name == "hmi-client"]


def test_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hmi", "predict"], capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
