"""A supervised process is restarted when it dies, and never outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hmi.stack import LocalStack
from hmi.supervisor import Child, ChildSpec, StackError

SERVING = "import time\nprint('ready: 127.0.0.1:1', flush=True)\ntime.sleep(60)\n"
FAILING = "raise SystemExit('the disk is missing')\n"
DEAF = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SERVING}"
CLINGING = (
    "import subprocess, sys\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3)'])\n"  # holds our stdout
    f"{SERVING}"
)


def _spec(directory: Path, code: str) -> ChildSpec:
    (directory / "supervised.py").write_text(code)
    root = str(Path(__file__).resolve().parents[2])
    env = {**os.environ, "PYTHONPATH": f"{directory}{os.pathsep}{root}"}
    return ChildSpec("supervised", "supervised", env, directory / "supervised.log")


def _eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def _is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def events() -> list[str]:
    return []


@pytest.fixture
def child_of(tmp_path: Path, events: list[str]) -> Iterator[Callable[[str], Child]]:
    children: list[Child] = []

    def make(code: str) -> Child:
        child = Child(_spec(tmp_path, code), on_event=events.append)
        children.append(child)
        child.start()
        return child

    yield make
    for child in children:
        child.stop(0.0)


def test_packages_of_the_current_directory_are_not_taken_for_ours(
    child_of: Callable[[str], Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "monorepo"
    (elsewhere / "hmi").mkdir(parents=True)
    (elsewhere / "hmi" / "__init__.py").write_text("raise SystemExit('not ours')\n")
    monkeypatch.chdir(elsewhere)
    child_of(SERVING).wait_ready(10)


@pytest.mark.parametrize("code", [SERVING, CLINGING], ids=["plain", "with a child of its own"])
def test_killed_process_is_started_again(
    child_of: Callable[[str], Child], events: list[str], code: str
) -> None:
    child = child_of(code)
    child.wait_ready(10)
    first = child.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert _eventually(lambda: child.pid not in (None, first), 2.5)
    child.wait_ready(10)
    assert events == ["supervised ended (signal 9), starting again", "supervised is back"]


def test_failed_start_says_why_and_is_not_repeated(child_of: Callable[[str], Child]) -> None:
    child = child_of(FAILING)
    with pytest.raises(StackError, match="the disk is missing"):
        child.wait_ready(10)
    assert child.pid is None


def test_silent_start_ends_with_the_time(child_of: Callable[[str], Child]) -> None:
    with pytest.raises(StackError, match="not ready"):
        child_of("import time; time.sleep(60)").wait_ready(0.3)


def test_deaf_process_is_ended_after_its_grace(child_of: Callable[[str], Child]) -> None:
    child = child_of(DEAF)
    child.wait_ready(10)
    pid = child.pid
    assert pid is not None
    child.stop(0.2)
    assert _is_gone(pid)


def test_process_dies_with_its_parent(tmp_path: Path) -> None:
    spec = _spec(tmp_path, SERVING)
    code = (
        "import os, time\nfrom pathlib import Path\nfrom hmi.supervisor import Child, ChildSpec\n"
        f"log = Path({str(spec.log_path)!r})\n"
        "child = Child(ChildSpec('s', 'supervised', os.environ, log), print)\n"
        "child.start()\nchild.wait_ready(10)\nprint(child.pid, flush=True)\ntime.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], env=dict(spec.env), stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert _eventually(lambda: _is_gone(pid))


def test_second_stack_on_a_directory_is_refused(tmp_path: Path) -> None:
    holder = LocalStack(tmp_path, port=0)
    holder._make_data_dir()
    holder._lock()
    with pytest.raises(StackError, match=f"process {os.getpid()}"):
        LocalStack(tmp_path, port=0).start()
    holder.stop()


def test_taken_port_is_refused(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(StackError, match=f"port {port}"):
            LocalStack(tmp_path, port=port).start()
    assert not (tmp_path / "admin.key").exists()


@pytest.mark.parametrize("given", [None, "0"])
def test_domains_update_themselves_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.delenv("HMI_DOMAIN_UPDATE_S", raising=False)
    if given is not None:
        monkeypatch.setenv("HMI_DOMAIN_UPDATE_S", given)
    [store] = [spec for spec in LocalStack(tmp_path)._specs() if spec.name == "knowledge_store"]
    assert store.env["HMI_DOMAIN_UPDATE_S"] == (given or "600")


def test_admin_key_is_private_and_kept(tmp_path: Path) -> None:
    stack = LocalStack(tmp_path, port=0)
    key = stack._read_or_make_admin_key()
    assert key.startswith("hmi_admin_")
    assert (tmp_path / "admin.key").stat().st_mode & 0o777 == 0o600
    assert LocalStack(tmp_path, port=0)._read_or_make_admin_key() == key
