"""One store a data directory.

Knows an advisory lock on a file; does not know what it guards.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DirectoryInUseError(Exception):
    """Another store works on this directory."""


@contextmanager
def locked_directory(directory: Path, *, wait_s: float = 3.0) -> Iterator[int]:
    """Hold `directory`'s lock; yields its file descriptor, which children may inherit.

    The kernel lets go of the lock when the last process that inherited it ends. The embedded
    Valkey inherits it, so a new store cannot start beside the Valkey of a killed one; `wait_s`
    is for that one to go.

    Raises:
        DirectoryInUseError: The lock is still held after `wait_s` seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _acquire(descriptor, directory, time.monotonic() + wait_s)
        yield descriptor
    finally:
        os.close(descriptor)


def _acquire(descriptor: int, directory: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise DirectoryInUseError(
                    f"{directory} is in use by another stack: stop it, or choose another data "
                    "directory"
                ) from None
            time.sleep(0.05)
        else:
            return
