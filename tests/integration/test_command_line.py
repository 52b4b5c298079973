"""The command line against a real stack, found by its data directory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
