"""A directory for files that must not outlive this process, however it ends.

Knows locks on directories; does not know what is written there.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "scratch-"


@contextmanager
def scratch_directory(parent: Path) -> Iterator[Path]:
    """A directory of its own for the length of the block. Deletes those of killed processes too.

    Raises:
        OSError: It cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{_PREFIX}*"):
        _delete_if_abandoned(left)
    while True:
        directory = Path(tempfile.mkdtemp(dir=parent, prefix=_PREFIX))
        descriptor = os.open(directory, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if directory.exists():  # another process may have found it before it was locked
            break
        os.close(descriptor)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def _delete_if_abandoned(directory: Path) -> None:
    with suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            with suppress(BlockingIOError):  # its process lives
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(directory, ignore_errors=True)
        finally:
            os.close(descriptor)
