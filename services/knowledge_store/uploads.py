"""One blob on its way to disk.

Knows files, digests and a full disk; does not know streams. Every method blocks: call it on a
thread.

A stream writes to a file of its own, `<key>.<random>.active`, so writers of the same blob do not
meet. When a stream breaks its file becomes `<key>.part`, which the next stream claims by renaming
it. The key is of blob and owner: else whoever knows a sha256 could go on with what another sent, or
drop it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from services.common.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted

_READ_BYTES = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def upload_key(sha256: str, owner: str) -> str:
    """How the files of an owner's uploads of a blob are named; an owner may be any string."""
    return f"{sha256}-{hashlib.sha256(owner.encode()).hexdigest()[:32]}"


def part_path(directory: Path, key: str) -> Path:
    """The file that holds what came of a broken stream."""
    return directory / f"{key}.part"


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Upload:
    """Bytes of one stream, appended and at the end checked.

    Args:
        directory: Where uploads lie.
        sha256: Digest the whole must have.
        owner: Whose it is.
        size_bytes: Size of the whole.
        offset: Bytes already held that this one goes on from; 0 begins again.

    Raises:
        FailedPrecondition: `offset` is not what is held.
        ResourceExhausted: The disk is full.
    """

    def __init__(
        self, directory: Path, sha256: str, owner: str, size_bytes: int, offset: int
    ) -> None:
        key = upload_key(sha256, owner)
        self._part = part_path(directory, key)
        self.path = directory / f"{key}.{uuid.uuid4().hex}.active"
        self._sha256 = sha256
        self._size_bytes = size_bytes
        self._digest = hashlib.sha256()
        # A cancelled call leaves its thread running: suspend() must wait for the write.
        self._lock = threading.Lock()
        self.held_bytes = 0
        self._descriptor: int | None = self._begin(offset)

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            InvalidArgument: More than `size_bytes`; nothing is kept.
            ResourceExhausted: The disk is full; nothing is kept.
        """
        with self._lock, self._discarded_on_error():
            if self._descriptor is None:
                return
            if self.held_bytes + len(data) > self._size_bytes:
                raise InvalidArgument("data", f"more bytes than size_bytes={self._size_bytes}")
            self._digest.update(data)
            view = memoryview(data)
            while view:
                written = os.write(self._descriptor, view)
                self.held_bytes += written
                view = view[written:]

    def finish(self, target: Path) -> None:
        """Check the digest, make the blob durable, and let it appear at `target`.

        Raises:
            DataLoss: Bytes are missing; what came is kept to be resumed.
            InvalidArgument: The digest differs; nothing is kept.
            ResourceExhausted: The disk is full; nothing is kept.
        """
        if self.held_bytes < self._size_bytes:
            self.suspend()
            raise DataLoss(
                f"the stream ended after {self.held_bytes} of {self._size_bytes} bytes: resume it",
                reason="UPLOAD_TRUNCATED",
            )
        with self._lock, self._discarded_on_error():
            if self._descriptor is None:
                return
            if self._digest.hexdigest() != self._sha256:
                raise InvalidArgument("sha256", "the bytes have another digest")
            os.fsync(self._descriptor)
            self._close()
            self.path.replace(target)
        sync_directory(target.parent)
        self._part.unlink(missing_ok=True)

    def suspend(self) -> None:
        """Keep what came, to be resumed. Does nothing to a finished or discarded upload."""
        with self._lock:
            if self._descriptor is None:
                return
            self._close()
            if self.held_bytes and self.held_bytes >= _size(self._part):
                self.path.replace(self._part)
            else:
                self.path.unlink(missing_ok=True)

    def _begin(self, offset: int) -> int:
        if not offset:
            self._part.unlink(missing_ok=True)
            return _create(self.path)
        try:
            self._part.replace(self.path)
        except FileNotFoundError:
            raise _wrong_offset(0) from None
        held = _size(self.path)
        if held != offset:
            self.path.replace(self._part)
            raise _wrong_offset(held)
        with open(self.path, "rb") as file:
            while chunk := file.read(_READ_BYTES):
                self._digest.update(chunk)
        self.held_bytes = held
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    @contextmanager
    def _discarded_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._close()
            self.path.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise _disk_full() from error
            raise

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _create(path: Path) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in _FULL:
            raise _disk_full() from error
        raise


def _size(path: Path) -> int:
    """Size in bytes; 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _wrong_offset(held: int) -> FailedPrecondition:
    return FailedPrecondition(
        f"{held} bytes are held: go on from there, or begin at 0", reason="WRONG_OFFSET"
    )


def _disk_full() -> ResourceExhausted:
    return ResourceExhausted("the store's disk is full", subject="store/disk", reason="DISK_FULL")


def recover(directory: Path) -> None:
    """After a crash: keep the longest file of each owner's blob, for the next stream to go on from.

    What was not synced may be torn; the digest tells when the upload finishes.
    """
    for path in list(directory.iterdir()):
        if path.suffix != ".active":
            continue
        part = part_path(directory, path.name.split(".", 1)[0])
        if _size(path) > _size(part):
            path.replace(part)
        else:
            path.unlink()
