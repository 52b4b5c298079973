"""Blobs being read: piece by piece, or mapped.

Knows one file at a time; does not know where blobs lie. Every function blocks: call it on a thread.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from pathlib import Path

from services.common.errors import NotFound

CHUNK_BYTES = 1 << 20


class Reader:
    """An open blob. Reading and closing may come from different threads."""

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor: int | None = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"there is no blob {path.name}") from None
        self._lock = threading.Lock()
        self._name = path.name
        self._digest = hashlib.sha256()
        self._num_digested = 0
        self.size_bytes = os.fstat(self._descriptor).st_size

    def read(self, offset: int) -> bytes:
        with self._lock:
            if self._descriptor is None:
                return b""
            data = os.pread(self._descriptor, CHUNK_BYTES, offset)
        if offset == self._num_digested:
            self._digest.update(data)
            self._num_digested += len(data)
        return data

    @property
    def is_damaged(self) -> bool:
        """Whether all of it was read, from its first byte on, and differs from the name."""
        is_read = self._num_digested == self.size_bytes
        return is_read and self._digest.hexdigest() != self._name

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None


def map_file(path: Path) -> memoryview:
    """A whole blob, read as it is used, also after the file is deleted.

    Raises:
        NotFound: There is no such blob.
    """
    try:
        with path.open("rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            if not size_bytes:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), size_bytes, access=mmap.ACCESS_READ))
    except FileNotFoundError:
        raise NotFound(f"there is no blob {path.name}") from None
