"""The way to the knowledge store, for the services that use it.

Knows channels, blobs and their digests; does not know what blobs hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import DataLoss, from_rpc_error
from services.common.ids import check_sha256
from services.common.server import CHANNEL_OPTIONS

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

CHUNK_BYTES = 1 << 20

_RECONNECT_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
]


class _WithToken:
    """Adds the service token to a call's metadata."""

    def __init__(self, token: str) -> None:
        self._entry = ("authorization", f"Bearer {token}")

    def details(self, given: grpc.aio.ClientCallDetails) -> grpc.aio.ClientCallDetails:
        metadata = grpc.aio.Metadata(*(given.metadata or ()))
        metadata.add(*self._entry)
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
    """A channel to another service of the suite that sends the service token with every call."""
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

    async def write(self, data: bytes) -> str:
        """Make a blob durable, going on where an earlier try stopped; returns its sha256.

        Raises:
            ResourceExhausted: Too large, or the store's disk is full.
            Unavailable: The store cannot be reached.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        try:
            held = await self._stub.StatBlob(pb.StatBlobRequest(sha256=sha256))
            if not held.is_complete:
                await self._stub.WriteBlob(_requests(sha256, data, held.committed_bytes))
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return sha256


async def _requests(sha256: str, data: bytes, offset: int) -> AsyncIterator[pb.WriteBlobRequest]:
    view = memoryview(data)
    first = bytes(view[offset : offset + CHUNK_BYTES])
    yield pb.WriteBlobRequest(sha256=sha256, size_bytes=len(data), offset=offset, data=first)
    for start in range(offset + CHUNK_BYTES, len(data), CHUNK_BYTES):
        yield pb.WriteBlobRequest(data=bytes(view[start : start + CHUNK_BYTES]))


class BlobCache:
    """Blobs on this process's disk, verified when they enter.

    Args:
        directory: Where the files lie, named by digest. Created if missing.
        blobs: Where missing ones come from.
    """

    def __init__(self, directory: Path, blobs: Blobs) -> None:
        self._directory = directory
        self._blobs = blobs
        directory.mkdir(parents=True, exist_ok=True)

    async def path(self, sha256: str) -> Path:
        """The file that holds a blob, fetched and verified if it was not there.

        Raises:
            NotFound, Unavailable: As `Blobs.chunks`.
            DataLoss: The bytes differ from the digest; nothing is kept.
        """
        check_sha256("sha256", sha256)
        path = self._directory / sha256
        if await asyncio.to_thread(path.exists):
            return path
        descriptor, name = tempfile.mkstemp(dir=self._directory)
        partial = Path(name)
        digest = hashlib.sha256()
        try:
            with os.fdopen(descriptor, "wb") as file:
                async for chunk in self._blobs.chunks(sha256):
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
            if digest.hexdigest() != sha256:
                raise DataLoss(f"blob {sha256} arrived with another digest")
            await asyncio.to_thread(partial.replace, path)
        finally:
            await asyncio.to_thread(partial.unlink, missing_ok=True)
        return path
