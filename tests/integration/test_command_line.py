"""The command line against a real stack, found by its data directory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmi.stack import LocalStack
from tests.integration.conftest import Trained

Lora = Callable[..., Trained]

TEXT = "Rates rise again."


def test_pushes_and_predicts_as_the_client_does(
    stack: LocalStack, lora: Lora, tmp_path: Path
) -> None:
    def hmi(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "hmi", *arguments, "--data-dir", str(stack.data_dir)]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=tmp_path)

    assert hmi("tenants", "create", "cli").returncode == 0
    directory = str(lora(1).directory)
    pushed = hmi("models", "push", directory, "--tenant", "cli", "--name", "news", "--json")
    assert pushed.returncode == 0, pushed.stderr
    assert json.loads(pushed.stdout)["number"] == 1
    answered = hmi("predict", "--tenant", "cli", "--model", "news", TEXT, "--json")
    assert answered.returncode == 0, answered.stderr
    (prediction,) = json.loads(answered.stdout)["predictions"]
    scores = [one["score"] for one in prediction["scores"]]
    assert scores == pytest.approx(lora(1).scores(TEXT, None).tolist(), abs=1e-4)
    missing = hmi("predict", "--tenant", "cli", "--model", "none", "text")
    assert missing.returncode == 1
    assert missing.stderr.count("\n") == 1


def test_a_models_life_by_commands_alone(stack: LocalStack, lora: Lora, tmp_path: Path) -> None:
    shared = ["--data-dir", str(stack.data_dir), "--json"]

    def hmi(*arguments: str) -> Any:
        command = [sys.executable, "-m", "hmi", *arguments, *shared]
        if arguments[0] == "models":
            command += ["--tenant", "cli-life"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    hmi("tenants", "create", "cli-life")
    for number in (1, 2):
        pushed = hmi("models", "push", str(lora(number).directory), "--name", "news")
        assert pushed["number"] == number
    assert [one["number"] for one in hmi("models", "versions", "news")] == [1, 2]
    assert traffic(hmi("models", "activate", "news", "1")) == {1: 100}
    assert traffic(hmi("models", "rollback", "news")) == {2: 100}
    assert hmi("models", "pin", "news")["pinned"] is True
    assert hmi("models", "pin", "news", "--off")["pinned"] is False
    assert hmi("models", "delete", "news", "--version", "1")["version"] == 1
    assert [one["name"] for one in hmi("models", "list")] == ["news"]
    assert hmi("models", "delete", "news")["deleted"] == "news"
    assert hmi("models", "list") == []
    assert "minilm" in [one["name"] for one in hmi("bases", "list")]


def traffic(model: dict[str, Any]) -> dict[int, int]:
    """Percent by version; JSON has no whole numbers as keys."""
    return {int(version): percent for version, percent in model["traffic"].items()}
