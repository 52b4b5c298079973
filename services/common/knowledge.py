"""The way to the knowledge store, for the services that use it.

Knows channels, blobs and their digests; does not know what blobs hold.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from weakref import WeakValueDictionary

import grpc
import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.ending import Ending
from services.common.errors import DataLoss, from_rpc_error
from services.common.ids import check_sha256
from services.common.logs import request_id_var
from services.common.server import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
DEFAULT_CACHE_BYTES = 64 << 30
_PARTIAL = "tmp"
_SHA256_CHARACTERS = 64

_RECONNECT_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


class _WithToken:
    """Adds the service token to a call's metadata, and the id of the request that it serves."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def details(self, given: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(given.metadata or ()))
        metadata.add(*self._entry)
        if request_id := request_id_var.get():
            metadata.add("x-request-id", request_id)
        return grpc.aio.ClientCallDetails(
            given.method, given.timeout, metadata, given.credentials, given.wait_for_ready
        )


class _UnaryUnary(_WithToken, grpc.aio.UnaryUnaryClientInterceptor):
    async def intercept_unary_unary(
        self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self.details(details), request)


class _UnaryStream(_WithToken, grpc.aio.UnaryStreamClientInterceptor):
    async def intercept_unary_stream(
        self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self.details(details), request)


class _StreamUnary(_WithToken, grpc.aio.StreamUnaryClientInterceptor):
    async def intercept_stream_unary(
        self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self.details(details), request)


class _StreamStream(_WithToken, grpc.aio.StreamStreamClientInterceptor):
    async def intercept_stream_stream(
        self, continuation: Callable[..., Any], details: grpc.aio.ClientCallDetails, request: Any
    ) -> Any:
        return await continuation(self.details(details), request)


def open_channel(address: str, token: str) -> grpc.aio.Channel:
    """A channel to another service of the suite that sends the service token with every call, and
    the request id of the caller's call, if it is in one: the other's log then names the same.
    """
    kinds = (_UnaryUnary, _UnaryStream, _StreamUnary, _StreamStream)
    return grpc.aio.insecure_channel(
        address,
        options=[*CHANNEL_OPTIONS, *_RECONNECT_OPTIONS],
        interceptors=[kind(token) for kind in kinds],
    )


class Blobs:
    """Blobs of the store, by digest."""

    def __init__(self, stub: KnowledgeServiceAsyncStub) -> None:
        self._stub = stub

    async def chunks(self, sha256: str) -> AsyncIterator[bytes]:
        """A blob's bytes, piece by piece, not verified.

        Raises:
            NotFound: There is no such blob.
            Unavailable: The store cannot be reached.
        """
        try:
            async for response in self._stub.ReadBlob(pb.ReadBlobRequest(sha256=sha256)):
                yield response.data
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error

    async def read(self, sha256: str) -> bytes:
        """A whole blob, verified.

        Raises:
            NotFound: There is no such blob.
            Unavailable: The store cannot be reached.
            DataLoss: The bytes differ from the digest.
        """
        data = b"".join([chunk async for chunk in self.chunks(sha256)])
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataLoss(f"blob {sha256} arrived with another digest")
        return data

    async def write(self, data: bytes, owner: str = "") -> str:
        """Make a blob durable, going on where `owner`'s earlier try stopped; returns its sha256.

        Raises:
            ResourceExhausted: Too large, or the store's disk is full.
            Unavailable: The store cannot be reached.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            held = await self._stub.StatBlob(pb.StatBlobRequest(sha256=sha256, owner=owner))
            if not held.is_complete:
                await self._write(_requests(sha256, data, held.committed_bytes, owner))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return sha256

    async def _write(self, requests: AsyncIterator[pb.WriteBlobRequest]) -> None:
        call = self._stub.WriteBlob(requests)
        ending = Ending(call)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            raise await ending.meant(error) from None


async def _requests(
    sha256: str, data: bytes, offset: int, owner: str
) -> AsyncIterator[pb.WriteBlobRequest]:
    view = memoryview(data)
    first = bytes(view[offset : offset + CHUNK_BYTES])
    yield pb.WriteBlobRequest(
        sha256=sha256, size_bytes=len(data), offset=offset, data=first, owner=owner
    )
    for start in range(offset + CHUNK_BYTES, len(data), CHUNK_BYTES):
        yield pb.WriteBlobRequest(data=bytes(view[start : start + CHUNK_BYTES]))


class BlobCache:
    """Blobs on this machine's disk, verified as they enter and when this process first uses them.

    Processes may share a directory, so what counts is there: a file's time is that of its last use,
    and a partial file is locked as long as its writer lives.

    Args:
        directory: Where the files lie, named by digest. Created if missing; what killed processes
            left half written is deleted.
        blobs: Where missing ones come from.
        max_bytes: What is kept; beyond it the least recently used go. Open a path soon: a file that
            is open outlives its name.
    """

    def __init__(
        self, directory: Path, blobs: Blobs, *, max_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self._directory = directory
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._verified: set[str] = set()
        # One fetch of a blob at a time; a lock goes with the last who waits for it.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.glob(f"{_PARTIAL}*"):
            _delete_if_abandoned(path)
        self._held_bytes = _evict(directory, max_bytes, keep="")

    async def path(self, sha256: str) -> Path:
        """The file that holds a blob, fetched if it was not there or held something else.

        Raises:
            NotFound, Unavailable: As `Blobs.chunks`.
            DataLoss: What the store sent differs from the digest; nothing is kept.
        """
        path = self._directory / check_sha256("sha256", sha256)
        async with self._locks.setdefault(sha256, asyncio.Lock()):
            if not await asyncio.to_thread(self._has, path):
                await self._fetch(path)
        return path

    def discard(self, sha256: str) -> None:
        """The file holds something else by now: verify it again before it is given."""
        self._verified.discard(sha256)

    def _has(self, path: Path) -> bool:
        """Whether the blob is there, now as the last used; what is there wrongly is deleted."""
        try:
            os.utime(path)
            if path.name in self._verified:
                return True
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return False
        if digest != path.name:
            logger.warning("a cached blob had another digest", extra={"sha256": path.name})
            path.unlink(missing_ok=True)
            return False
        self._verified.add(path.name)
        return True

    async def _fetch(self, path: Path) -> None:
        descriptor, name = tempfile.mkstemp(dir=self._directory, prefix=_PARTIAL)
        partial = Path(name)
        digest = hashlib.sha256()
        try:
            with os.fdopen(descriptor, "wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                async for chunk in self._blobs.chunks(path.name):
                    digest.update(chunk)
                    self._held_bytes += len(chunk)
                    await asyncio.to_thread(file.write, chunk)
                if digest.hexdigest() != path.name:
                    raise DataLoss(f"blob {path.name} arrived with another digest")
                # Durable before it has its name, or a power failure could leave the name alone.
                await asyncio.to_thread(_sync, file)
                await asyncio.to_thread(partial.replace, path)
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)
        self._verified.add(path.name)
        if self._held_bytes > self._max_bytes:
            self._held_bytes = await asyncio.to_thread(
                _evict, self._directory, self._max_bytes, keep=path.name
            )


def _delete_if_abandoned(partial: Path) -> None:
    try:
        with partial.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            partial.unlink(missing_ok=True)
    except (FileNotFoundError, BlockingIOError):
        return  # its writer came to the end, or is at work


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _evict(directory: Path, max_bytes: int, keep: str) -> int:
    """If more than `max_bytes` are held, delete the least recently used until a tenth is free.

    Returns the bytes held. `keep` names one that stays.
    """
    files = []
    for entry in os.scandir(directory):
        with suppress(FileNotFoundError):  # another process evicts too
            if len(entry.name) == _SHA256_CHARACTERS:
                found = entry.stat()
                files.append((found.st_mtime_ns, found.st_size, entry.name))
    held = sum(size for _, size, _ in files)
    if held <= max_bytes:
        return held
    for _, size, name in sorted(files):
        if held <= max_bytes * 0.9:
            break
        if name != keep:
            (directory / name).unlink(missing_ok=True)
            held -= size
    return held
