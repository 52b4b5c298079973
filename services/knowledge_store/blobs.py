"""Content-addressed files: `blobs/ab/<sha256>`, immutable once they are there.

Knows the disk; does not know who refers to a blob. Disk work runs on threads of its own: many, so
that the file system commits many fsyncs at once.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import ParamSpec, TypeVar

from services.common.errors import DataLoss, InvalidArgument, ResourceExhausted
from services.common.ids import check_sha256
from services.knowledge_store import metrics, uploads
from services.knowledge_store.damaged import DamagedBlob, DamagedBlobs
from services.knowledge_store.domain import BlobFile, BlobState
from services.knowledge_store.reading import Reader, map_file
from services.knowledge_store.uploads import Upload

_NUM_THREADS = 16

P = ParamSpec("P")
T = TypeVar("T")


class BlobDirectory:
    """The blobs of one data directory.

    Args:
        data_dir: Holds `blobs/`, `uploads/` and `damaged/`; created if missing.
        max_blob_bytes: Largest blob taken.

    Opening it finishes what a crash left: uploads become resumable, and are counted with the rest.

    A blob is there once its name is durable, not merely once its file has it: between the rename
    and the directory's fsync it could be acknowledged to someone and yet vanish with the power.
    """

    def __init__(self, data_dir: Path, *, max_blob_bytes: int) -> None:
        self._blobs = data_dir / "blobs"
        self._uploads = data_dir / "uploads"
        self._damaged = DamagedBlobs(data_dir / "damaged")
        self._max_blob_bytes = max_blob_bytes
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="disk")
        # Held while a blob's age is renewed or read to delete it, so neither slips between.
        self._age_lock = threading.Lock()
        # Blobs that have their name, or are about to, without it being durable yet.
        self._publishing: set[str] = set()
        self._publishing_lock = threading.Lock()

    async def open(self) -> None:
        """Make the directories, recover uploads, count blobs."""
        await self._run(self._open)

    def close(self) -> None:
        """Wait for the threads."""
        self._threads.shutdown()

    async def stat(self, sha256: str, owner: str = "") -> BlobState:
        """What is held, of a whole blob or by this owner. A complete blob counts as used now.

        Raises:
            InvalidArgument: `sha256` is none.
        """
        check_sha256("sha256", sha256)
        return await self._run(self._stat, sha256, owner)

    async def sizes(self, digests: Iterable[str]) -> dict[str, int]:
        """Sizes in bytes of those blobs that are complete, by digest; they count as used now."""
        return await self._run(self._sizes, list(digests))

    async def write(
        self,
        sha256: str,
        size_bytes: int,
        offset: int,
        chunks: AsyncIterator[bytes],
        *,
        owner: str = "",
    ) -> int:
        """Add `chunks` from `offset` on, until the blob is durable; returns its size.

        Only the same `owner` goes on with what came of a broken stream.

        A blob that is complete already is answered at once.

        Raises:
            InvalidArgument: `sha256` is none, or the bytes have another; too many bytes.
            FailedPrecondition: `offset` is not what is held.
            ResourceExhausted: Too large, or the disk is full.
            DataLoss: The chunks ended early.
        """
        state = await self.stat(sha256, owner)
        if state.is_complete:
            return state.held_bytes
        if size_bytes > self._max_blob_bytes:
            raise ResourceExhausted(
                f"a blob may hold {self._max_blob_bytes} bytes, not {size_bytes}",
                subject="store/max_blob_bytes",
                reason="BLOB_TOO_LARGE",
            )
        upload = await self._opened(
            self._run(Upload, self._uploads, sha256, owner, size_bytes, offset), Upload.suspend
        )
        try:
            async for chunk in chunks:
                if chunk:
                    await self._run(upload.write, chunk)
            await self._run(self._finish, upload, sha256, size_bytes)
        finally:
            # Shielded, so that a second cancellation cannot leave the file behind unnamed.
            await asyncio.shield(self._run(upload.suspend))
        return size_bytes

    async def read(self, sha256: str, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """The blob's size and its bytes from `offset` on, in chunks of up to 1 MiB; one at least.

        Who reads all of a damaged blob does not get its end, and nobody gets it afterwards.

        Raises:
            NotFound: There is no such blob.
            DataLoss: Its bytes differ from its digest.
            InvalidArgument: `sha256` is none, or `offset` is past the end.
        """
        check_sha256("sha256", sha256)
        reader = await self._opened(self._run(Reader, self._path(sha256)), Reader.close)
        try:
            if offset > reader.size_bytes:
                raise InvalidArgument("offset", f"the blob has {reader.size_bytes} bytes")
            while True:
                data = await self._run(reader.read, offset)
                if reader.is_damaged:
                    await self._run(self._damaged.take, self._path(sha256))
                    raise DataLoss(f"blob {sha256} is damaged: write it anew")
                yield reader.size_bytes, data
                offset += len(data)
                if not data or offset >= reader.size_bytes:
                    return
        finally:
            self._threads.submit(reader.close)

    async def read_all(self, sha256: str) -> bytes:
        """A whole blob.

        Raises:
            NotFound: There is no such blob.
        """
        return bytes(await self.mapped(sha256))

    async def mapped(self, sha256: str) -> memoryview:
        """A whole blob, its bytes read as they are used; it outlives the blob's deletion.

        Raises:
            NotFound: There is no such blob.
        """
        return await self._run(map_file, self._path(sha256))

    async def damaged(self) -> list[DamagedBlob]:
        """What was set aside as damaged."""
        return await self._run(self._damaged.list)

    async def give_up_damaged(self, sha256: str) -> None:
        """Note that the content of a damaged blob is of no use."""
        await self._run(self._damaged.give_up, sha256)

    async def forget_damaged(self, digests: Collection[str]) -> None:
        """Delete what was set aside of blobs that are there again, or that nobody needs."""
        await self._run(self._damaged.forget, digests)

    async def list(self) -> list[BlobFile]:
        """Every complete blob."""
        return await self._run(lambda: list(self._scan()))

    async def delete(self, sha256: str, *, unused_since: float) -> bool:
        """Delete a blob unless it was used after `unused_since` (Unix seconds)."""
        return await self._run(self._delete, sha256, unused_since)

    async def delete_uploads(self, *, older_than: float) -> int:
        """Delete what broken streams left before `older_than` (Unix seconds); returns how many."""
        return await self._run(self._delete_uploads, older_than)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))

    async def _opened(self, opening: Coroutine[None, None, T], undo: Callable[[T], None]) -> T:
        """What `opening` opens. If the caller is cancelled meanwhile, it is undone."""
        task = asyncio.ensure_future(opening)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: None if done.exception() else undo(done.result()))
            raise

    def _path(self, sha256: str) -> Path:
        return self._blobs / sha256[:2] / sha256

    def _open(self) -> None:
        self._uploads.mkdir(parents=True, exist_ok=True)
        self._damaged.open()
        for number in range(256):
            (self._blobs / f"{number:02x}").mkdir(parents=True, exist_ok=True)
        # The blobs' own too: a killed process may have renamed into them and not come further.
        for directory in (*self._blobs.iterdir(), self._blobs, self._blobs.parent):
            uploads.sync_directory(directory)
        uploads.recover(self._uploads)
        files = list(self._scan())
        metrics.blobs.set(len(files))
        metrics.blob_bytes.set(sum(file.size_bytes for file in files))

    def _stat(self, sha256: str, owner: str) -> BlobState:
        if sizes := self._sizes([sha256]):
            return BlobState(sizes[sha256], is_complete=True)
        part = uploads.part_path(self._uploads, uploads.upload_key(sha256, owner))
        with _missing_ok():
            return BlobState(part.stat().st_size, is_complete=False)
        return BlobState(0, is_complete=False)

    def _sizes(self, digests: Iterable[str]) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for sha256 in digests:
            if sha256 in self._publishing:
                continue
            path = self._path(sha256)
            with _missing_ok(), self._age_lock:
                os.utime(path)
                sizes[sha256] = path.stat().st_size
        return sizes

    def _finish(self, upload: Upload, sha256: str, size_bytes: int) -> None:
        target = self._path(sha256)
        with self._publishing_lock:
            # One that is seen already stays so: somebody may have been told that it is there.
            if not target.exists():
                self._publishing.add(sha256)
        upload.finish(target)
        with self._publishing_lock:
            is_new = sha256 in self._publishing
            self._publishing.discard(sha256)
        if is_new:
            metrics.blobs.inc()
            metrics.blob_bytes.inc(size_bytes)

    def _scan(self) -> Iterator[BlobFile]:
        for directory in sorted(self._blobs.iterdir()):
            for entry in os.scandir(directory):
                with _missing_ok():
                    found = entry.stat()
                    yield BlobFile(entry.name, found.st_size, found.st_mtime)

    def _delete(self, sha256: str, unused_since: float) -> bool:
        path = self._path(sha256)
        with _missing_ok(), self._age_lock:
            found = path.stat()
            if found.st_mtime > unused_since:
                return False
            path.unlink()
            metrics.blobs.dec()
            metrics.blob_bytes.dec(found.st_size)
            return True
        return False

    def _delete_uploads(self, older_than: float) -> int:
        num_deleted = 0
        for path in self._uploads.glob("*.part"):
            with _missing_ok():
                if path.stat().st_mtime <= older_than:
                    path.unlink()
                    num_deleted += 1
        return num_deleted


@contextmanager
def _missing_ok() -> Iterator[None]:
    """Whatever is looked at may be deleted or claimed at the same moment."""
    try:
        yield
    except FileNotFoundError:
        return


def now() -> float:
    """The clock of `used_at`: Unix seconds, as the file system keeps them."""
    return time.time()
