"""`hmi up` as a user runs it: one ready line, one stack a directory, nothing left when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hmi.client import Client

pytestmark = pytest.mark.timeout(120)


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hmi", *arguments]


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts `hmi up` on one directory and a free port."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            _command("up", "--data-dir", str(tmp_path), "--port", "0", "--device", "cpu"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:
            process.kill()


def _ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("ready: 127.0.0.1:"), process.stderr and process.stderr.read()
    return line.removeprefix("ready: ").strip()


def _are_gone(processes: list[psutil.Process], seconds: float) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return not alive


def test_serves_keeps_its_state_and_leaves_nothing(
    up: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    first = up()
    address = _ready(first)
    key = (tmp_path / "admin.key").read_text().strip()
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "embedding").mkdir()
    (tmp_path / "embedding" / "hmi.json").write_text(json.dumps({"task": "embedding"}))
    with Client(address, key=key) as admin:
        admin.create_tenant("acme")
        acme = admin.for_tenant("acme")
        acme.push_version("embed", tmp_path / "embedding")
        before = acme.predict("embed", "text")

    second = up()
    _, complaint = second.communicate(timeout=30)
    assert second.returncode == 1
    assert complaint.startswith("error: another stack")
    assert complaint.count("\n") == 1

    children = psutil.Process(first.pid).children(recursive=True)
    assert len(children) >= 3
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 0
    assert _are_gone(children, 5)
    assert not (tmp_path / "address").exists()

    third = up()
    with Client(_ready(third), key=key) as admin:
        after = admin.for_tenant("acme").predict("embed", "text")
    assert after == before


def test_killed_stack_leaves_no_process(up: Callable[[], subprocess.Popen[str]]) -> None:
    process = up()
    _ready(process)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    assert _are_gone(children, 10)


def test_interrupt_while_starting_ends_it(up: Callable[[], subprocess.Popen[str]]) -> None:
    process = up()
    parent = psutil.Process(process.pid)
    end = time.monotonic() + 20
    while not (children := parent.children(recursive=True)):
        assert time.monotonic() < end
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(30) == 0
    assert _are_gone(children, 10)
