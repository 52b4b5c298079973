"""`hmi train` and the push after it, as somebody at a terminal meets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from hmi.admin.v1 import model_pb2, model_pb2_grpc, resources_pb2
from hmi.cli.main import run
from tests.executor.training import tiny_base, topics


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"), "bert")


def arguments(data: Path, base_dir: Path, *further: str) -> list[str]:
    out = str(data.parent / "out dir")
    options = ["--base", "tiny", "--base-dir", str(base_dir), "--epochs", "2", "--out", out]
    return ["train", str(data), *options, *further]


def test_what_was_cut_each_epoch_the_files_and_the_next_command_are_told(
    base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = topics(tmp_path / "d.csv")
    data.write_text(f"{data.read_text()}\n{'soup ' * 100},food\n")
    assert run(arguments(data, base_dir)) == 0
    cut, first, second, kept, wrote, following = capsys.readouterr().err.splitlines()
    assert "1 text has more than 64 tokens" in cut
    assert "d.csv:62" in cut
    assert "epoch 1 of 2: loss " in first
    assert "epoch 2 of 2: loss " in second
    assert "accuracy" in kept
    assert all(name in wrote for name in ("adapter_model.safetensors", "hmi.json"))
    assert following == f"next: hmi models push '{tmp_path / 'out dir'}' --name NAME"


def test_the_same_as_json(
    base_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = topics(tmp_path / "d.csv")
    assert run(arguments(data, base_dir, "--max-tokens", "8", "--json")) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    report = json.loads(captured.out)
    assert report["max_tokens"] == 8
    assert report["num_truncated"] == 0
    assert report["notes"] == []


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("text,label\n", [], "error: d.csv: holds no examples\n"),
        ("text,label\na,x\nb,x\n", [], "error: d.csv: every example has the label 'x'"),
        ("text,label\na,x\nb,y\n", [], "error: DATA: every label has one example only"),
        ("text,label\na,x\nb,x\nc,y\n", ["--held-out", "0.9"], "error: --held-out: must be"),
        ("text,label\na,x\nb,x\nc,y\n", ["--task", "topic"], "error: --task topic is none of"),
        ("text,label\na,x\nb,x\nc,y\n", ["--device", "gpu"], "error: --device: 'gpu' is none"),
        ("text,label\na,x\nb,x\nc,y\n", ["--domain", "news"], "error: --domain: base tiny"),
        (
            "text,label\na,x\nb,x\nc,y\n",
            ["--domain", "News", "--local-encoder", __file__],
            "error: --domain: must be",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words_of_the_command(
    base_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    options: list[str],
    message: str,
) -> None:
    data = tmp_path / "d.csv"
    data.write_text(content)
    assert run(arguments(data, base_dir, *options)) == 1
    assert capsys.readouterr().err.startswith(message)
    assert not (tmp_path / "out dir").exists()


class _Models(model_pb2_grpc.ModelServiceServicer):
    """Takes any version; that of the base `split` reads tables."""

    def GetUpload(self, request: Any, context: Any) -> model_pb2.GetUploadResponse:
        return model_pb2.GetUploadResponse()

    def UploadVersion(
        self, requests: Iterator[model_pb2.UploadVersionRequest], context: Any
    ) -> model_pb2.UploadVersionResponse:
        header, *_ = [one.header for one in requests]
        version = resources_pb2.Version(
            tenant="acme",
            model=header.model,
            number=1,
            digest=header.sha256,
            base=header.base,
            domain=header.domain,
            follow=header.follow,
            table_version="t1" if header.base == "split" else "",
        )
        return model_pb2.UploadVersionResponse(version=version)


@pytest.fixture
def target() -> Iterator[list[str]]:
    server = grpc.server(ThreadPoolExecutor(2))
    model_pb2_grpc.add_ModelServiceServicer_to_server(_Models(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield ["--address", f"127.0.0.1:{port}", "--key", "secret"]
    server.stop(None).wait()


@pytest.mark.parametrize(
    ("options", "guess", "told"),
    [
        (["--base", "minilm"], None, "on minilm"),
        (["--base", "split"], "no domain given", "on split with today's tables of /"),
        (["--base", "split", "--domain", "/"], None, "on split with today's tables of /"),
        (
            ["--base", "split", "--domain", "news", "--follow"],
            None,
            "on split with the latest tables of news",
        ),
    ],
)
def test_a_push_says_which_tables_the_version_reads(
    target: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    guess: str | None,
    told: str,
) -> None:
    (tmp_path / "hmi.json").write_text(json.dumps({"task": "embedding"}))
    assert run(["models", "push", str(tmp_path), "--name", "m", *options, *target]) == 0
    *guesses, last = capsys.readouterr().err.splitlines()
    assert last.endswith(told)
    assert [line.startswith(guess or "?") for line in guesses] == [True] * (guess is not None)


def test_a_push_for_another_task_than_was_trained_is_refused(
    target: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hmi.json").write_text(json.dumps({"task": "embedding"}))
    options = ["--name", "m", "--task", "regression"]
    assert run(["models", "push", str(tmp_path), *options, *target]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --task: regression is asked for, but hmi.json says")
