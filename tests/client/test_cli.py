"""The command line: exit status, one line on stderr, JSON, where address and key come from."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from grpc_status import rpc_status

from hmi.admin.v1 import model_pb2, model_pb2_grpc, resources_pb2, tenant_pb2, tenant_pb2_grpc
from hmi.cli.main import app, run
from hmi.inference.v1 import inference_pb2 as pb
from hmi.inference.v1 import inference_pb2_grpc
from services.common.errors import HmiError, InvalidArgument, PermissionDenied


class _Gateway(
    inference_pb2_grpc.InferenceServiceServicer,
    tenant_pb2_grpc.TenantServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
):
    """A few RPCs, and the metadata they came with."""

    def __init__(self) -> None:
        self.metadata: dict[str, str | bytes] = {}
        self.traffic: dict[int, int] = {}
        self.texts: list[list[str]] = []
        self.versions: list[int] = []

    def Predict(self, request: pb.PredictRequest, context: Any) -> pb.PredictResponse:
        self.metadata = dict(context.invocation_metadata())
        self.texts.append([one.text for one in request.inputs])
        self.versions.append(request.version)
        for index, one in enumerate(request.inputs):
            if one.text == "too long":
                refuse(context, InvalidArgument(f"inputs[{index}].text", "has 600 tokens"))
        if request.model == "slow":
            time.sleep(0.5)
        if request.model == "of-nobody":
            refuse(context, InvalidArgument("x-hmi-tenant", "an admin key must name the tenant"))
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

    def DeleteTenant(self, request: Any, context: Any) -> tenant_pb2.DeleteTenantResponse:
        refuse(context, PermissionDenied("this needs an admin key", reason="NOT_ADMIN"))
        return tenant_pb2.DeleteTenantResponse()

    def GetModel(self, request: Any, context: Any) -> model_pb2.GetModelResponse:
        target = resources_pb2.TrafficTarget(version=1, percent=90)
        return model_pb2.GetModelResponse(model=resources_pb2.Model(traffic=[target]))

    def ListVersions(self, request: Any, context: Any) -> model_pb2.ListVersionsResponse:
        version = resources_pb2.Version(
            number=1,
            task=resources_pb2.TASK_MULTI_LABEL_CLASSIFICATION,
            labels=["a", "b"],
            adapter_type="bottleneck",
            base="minilm",
            digest="0123456789abcdef",
        )
        version.create_time.GetCurrentTime()
        return model_pb2.ListVersionsResponse(versions=[version])

    def SetTraffic(self, request: Any, context: Any) -> model_pb2.SetTrafficResponse:
        self.traffic = {target.version: target.percent for target in request.traffic}
        model = resources_pb2.Model(name=request.model, traffic=request.traffic)
        return model_pb2.SetTrafficResponse(model=model)

    def ListModels(self, request: Any, context: Any) -> model_pb2.ListModelsResponse:
        first = not request.page_token
        model = resources_pb2.Model(name="one" if first else "two")
        return model_pb2.ListModelsResponse(models=[model], next_page_token="x" if first else "")


def refuse(context: Any, error: HmiError) -> None:
    """End the call as the gateway does, with the error's google.rpc details."""
    context.abort_with_status(rpc_status.to_status(error.to_status()))


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
        (["predict", "--model", "m", "--version", "-1", "text"], 2),
        (["predict", "--model", "m", "--priority", "99999999999", "text"], 2),
        (["models", "activate", "m", "0"], 2),
        (["models", "traffic", "m", "1=9999999999999"], 1),
        (["models", "traffic", "m", "9999999999999=100"], 1),
        (["tenants", "create", "x", "--max-models", "-1"], 2),
        (["tenants", "create", "x", "--weight", "0"], 2),
        (["tenants", "set", "x", "--weight", "0"], 2),
        (["predict", "--model", "m", "one", "--pair", "a", "--pair", "b"], 1),
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


def test_lines_of_stdin(
    target: list[str],
    gateway: _Gateway,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["first\r\n", "\r\n", *(f"text {number}\n" for number in range(4096))]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(lines), newline=""))
    assert run(["predict", "--model", "m", "-", "--json", *target]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["predictions"]) == 4097
    assert captured.err == "empty lines left out: 1\n"
    assert [len(texts) for texts in gateway.texts] == [4096, 1]
    assert gateway.texts[0][0] == "first"
    assert gateway.versions == [0, 2]  # the version that answered the first piece


def test_a_refused_text_is_counted_from_the_first_of_all(
    target: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("text\n" * 4100 + "too long\n"))
    assert run(["predict", "--model", "m", "-", *target]) == 1
    assert capsys.readouterr().err == "error: text 4101: has 600 tokens\n"


def test_a_tenants_key_where_an_admins_is_needed(
    address: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMI_API_KEY", "a tenant's")
    assert run(["tenants", "delete", "beta", "--address", address]) == 1
    error = capsys.readouterr().err
    assert "HMI_API_KEY is a tenant's key: unset it" in error
    assert "admin.key" in error


def test_an_admin_key_without_a_tenant(
    target: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "--model", "of-nobody", "text", *target]) == 1
    assert "give --tenant NAME" in capsys.readouterr().err


def test_a_deadline_says_which_option_is_longer(
    target: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", "--model", "slow", "text", "--timeout", "0.2", *target]) == 1
    assert "no answer within 0.2 s: give a longer --timeout" in capsys.readouterr().err


def test_versions_fit_a_terminal(target: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "versions", "m", *target]) == 0
    title, line = capsys.readouterr().out.splitlines()
    assert "traffic" in title
    assert "90 %" in line
    assert "0123456789ab" in line


def test_threads_end_with_the_command(target: list[str]) -> None:
    before = set(threading.enumerate())  # other tests' clients may not have ended yet
    assert run(["models", "list", *target]) == 0
    begun = set(threading.enumerate()) - before
    assert not [one for one in begun if one.name == "hmi-client"]


def leaves(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command that does something, by its words."""
    for name, inner in group.commands.items():
        if hasattr(inner, "commands"):
            yield from leaves(inner, (*path, name))
        else:
            yield " ".join((*path, name)), inner


def test_every_command_can_answer_in_json() -> None:
    commands = dict(leaves(typer.main.get_command(app)))
    assert {"predict", "train", "models push", "domains create", "bases list"} <= commands.keys()
    without = [
        name
        for name, one in commands.items()
        if not any("--json" in parameter.opts for parameter in one.params)
    ]
    assert without == []
