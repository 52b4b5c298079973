"""How long the command `hmi up` takes until a first answer comes.

Knows a data directory that was used before; does not know what else is measured on it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from benchmarks.report import Report, median
from hmi.client import Client
from hmi.errors import NotFound

REPEATS = 7
_ROOT_S = 300.0


def start(report: Report, data_dir: Path, text: str) -> None:
    """From the command `hmi up` to the first answer of a tenant's model.

    The bases were registered before, and the split one's root table is there.
    """
    _started(data_dir, _wait_for_root)
    seconds = [
        _started(data_dir, lambda admin: admin.for_tenant("bench").predict("m0", text))
        for _ in range(REPEATS)
    ]
    report.add("hmi up to the first answer", median(seconds), "s")


def _started(data_dir: Path, first: Callable[[Client], object]) -> float:
    """Seconds from starting a stack to the end of the first thing that is asked of it."""
    command = [sys.executable, "-m", "hmi", "up", "--port", "0", "--data-dir", str(data_dir)]
    key = (data_dir / "admin.key").read_text().strip()
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as stack:
        with Client(_ready_address(stack), key=key) as admin:
            first(admin)
        seconds = time.perf_counter() - began
        stack.terminate()
    return seconds


def _wait_for_root(admin: Client) -> None:
    end = time.monotonic() + _ROOT_S
    while time.monotonic() < end:
        with suppress(NotFound):
            if admin.get_domain("hminilm", "").table_version:
                return
        time.sleep(1)
    raise RuntimeError(f"the split base's root has no table after {_ROOT_S:.0f} s")


def _ready_address(stack: subprocess.Popen[str]) -> str:
    if stack.stdout is None:
        raise RuntimeError("the stack's output is not read")
    for line in stack.stdout:
        if line.startswith("ready: "):
            return line.removeprefix("ready: ").strip()
    raise RuntimeError("hmi up ended before it was ready")
