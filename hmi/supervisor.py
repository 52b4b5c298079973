"""Keeps one child process running: starts it, waits for its word, restarts it with back-off, ends
it.

Knows processes; does not know what they serve.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

READY_PREFIX = "ready: "

_FIRST_DELAY_S = 0.1
_MAX_DELAY_S = 5.0
_STEADY_S = 30.0
"""A child that lived this long starts again without delay."""


class StackError(Exception):
    """The local stack cannot start or go on; the message is one line."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run, and where its words go."""

    name: str
    module: str
    env: Mapping[str, str]
    log_path: Path


class Child:
    """One supervised process.

    A thread of its own starts it, because the parent-death signal is tied to the starting thread's
    life.

    Args:
        on_event: Told in a line when the process ends unasked, and when it is back.
    """

    def __init__(self, spec: ChildSpec, on_event: Callable[[str], None]) -> None:
        self.spec = spec
        self._on_event = on_event
        self._process: subprocess.Popen[bytes] | None = None
        self._changed = threading.Condition()
        self._is_ready = False
        self._was_ready = False
        self._failure: str | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"hmi-{spec.name}", daemon=True)

    @property
    def pid(self) -> int | None:
        """Process id; None between two lives."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    def start(self) -> None:
        """Start the process; returns before it is ready."""
        self._thread.start()

    def wait_ready(self, timeout: float) -> None:
        """Wait until the process has said that it is ready.

        Raises:
            StackError: It ended before it was ever ready, or the time is over.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._is_ready or self._failure is not None, timeout)
            self.check()
            if not self._is_ready:
                raise StackError(
                    f"{self.spec.name} was not ready within {timeout:.0f} s; "
                    f"see {self.spec.log_path}"
                )

    def check(self) -> None:
        """Raise StackError if the process ended before it was ever ready; it stays so."""
        if self._failure is not None:
            raise StackError(self._failure)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, and do not restart the process when it ends."""
        self._stopping.set()
        pid = self.pid
        if pid is not None:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return  # it ended in between, as was wanted

    def stop(self, grace_s: float) -> None:
        """Ask the process to end, insist after `grace_s` seconds, and return when it has ended."""
        self.signal(signal.SIGTERM)
        if self._thread.ident is None:
            return
        self._thread.join(grace_s)
        while self._thread.is_alive():
            self.signal(signal.SIGKILL)
            self._thread.join(0.5)

    def _run(self) -> None:
        num_failures = 0
        while not self._stopping.is_set():
            begin = time.monotonic()
            status = self._live()
            if self._stopping.is_set():
                return
            if not self._was_ready:
                self._fail(status)
                return
            num_failures = 0 if time.monotonic() - begin > _STEADY_S else num_failures + 1
            delay = min(_MAX_DELAY_S, _FIRST_DELAY_S * 2 ** (num_failures - 1))
            self._on_event(f"{self.spec.name} ended ({_cause(status)}), starting again")
            self._stopping.wait(delay)

    def _live(self) -> int:
        """One life of the process: its exit status."""
        with self.spec.log_path.open("ab", buffering=0) as log:
            process = subprocess.Popen(
                # -P: a directory that has a `services` of its own may be the current one.
                [sys.executable, "-P", "-m", "hmi._child", str(os.getpid()), self.spec.module],
                env=dict(self.spec.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which ends them in order
            )
            self._process = process
            if self._stopping.is_set():
                process.terminate()  # asked to stop while it was being started
        # Not waited for: a process that the child leaves behind may hold the pipe open.
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        status = process.wait()
        self._set_ready(False)
        return status

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            return
        with process.stdout as words, self.spec.log_path.open("ab", buffering=0) as log:
            for line in words:
                log.write(line)
                if line.startswith(READY_PREFIX.encode()) and process is self._process:
                    if self._was_ready:
                        self._on_event(f"{self.spec.name} is back")
                    self._set_ready(True)

    def _set_ready(self, is_ready: bool) -> None:
        with self._changed:
            self._is_ready = is_ready
            self._was_ready = self._was_ready or is_ready
            self._changed.notify_all()

    def _fail(self, status: int) -> None:
        reason = _last_words(self.spec.log_path)
        with self._changed:
            self._failure = (
                f"{self.spec.name} ended ({_cause(status)}) before it was ready"
                f"{': ' + reason if reason else ''}; see {self.spec.log_path}"
            )
            self._changed.notify_all()


def _cause(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"


def _last_words(log_path: Path) -> str:
    """The message of a log's last line, be it JSON or plain."""
    lines = log_path.read_text(errors="replace").strip().splitlines()
    if not lines:
        return ""
    try:
        return str(json.loads(lines[-1]).get("message", lines[-1]))
    except (json.JSONDecodeError, AttributeError):
        return lines[-1]
