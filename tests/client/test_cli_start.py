"""The command line before any gateway is asked: help, version, and what is refused at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hmi
from hmi.cli.main import run


@pytest.mark.parametrize("group", ["tenants", "keys", "models", "bases"])
def test_a_group_alone_is_answered_with_its_help(
    group: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([group]) == 0
    assert "list" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"hmi {hmi.__version__}\n"


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    out = capsys.readouterr().out
    for name in ("up", "tenants", "keys", "models", "predict", "train", "bases"):
        assert name in out


def test_module_is_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "hmi", "predict"], capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1


def test_a_mistake_in_the_data_is_said_before_torch_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\nonly a text\n")
    code = (
        "import sys; from hmi.cli.main import run; status = run(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    arguments = ["train", str(tmp_path / "data.csv"), "--out", str(tmp_path / "out")]
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=30
    )
    assert result.returncode == 1
    assert "data.csv:2" in result.stderr
    assert result.stderr.count("\n") == 1
