"""Blobs that callers send: whole, or from where a broken stream ended.

Knows streams of bytes and the store; does not know what a blob is for. A whole one is handed on in
memory, to be checked before the store sees it; a resumed one, whose beginning only the store has,
goes to the store and is read back. What came of a broken stream is kept there for its owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    HmiError,
    InvalidArgument,
)
from services.common.ids import check_sha256
from services.common.knowledge import Blobs
from services.gateway.budget import Holding
from services.gateway.mirror import Mirror
from services.gateway.store_calls import ask, write_blob

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

Chunks = AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Announced:
    """A blob that a header announces, and where its bytes begin.

    Attributes:
        owner: The tenant that sends it; empty for an admin who acts for nobody.
        offset: Bytes that the store holds of it already.
    """

    owner: str
    sha256: str
    size_bytes: int
    offset: int


class Arrivals:
    """Takes blobs. Only one that one of the owner's versions has can be named without its bytes: a
    digest is no proof of having them.
    """

    def __init__(self, stub: KnowledgeServiceAsyncStub, mirror: Mirror) -> None:
        self._stub = stub
        self._blobs = Blobs(stub)
        self._mirror = mirror
        self._keeping: set[asyncio.Task[None]] = set()

    async def held_bytes(self, owner: str, sha256: str) -> int:
        """How much of a blob need not be sent again."""
        check_sha256("sha256", sha256)
        held = await ask(self._stub.StatBlob(pb.StatBlobRequest(sha256=sha256, owner=owner)))
        if held.is_complete and not self._mirror.owns_blob(owner, sha256):
            return 0
        return held.committed_bytes

    async def take(self, blob: Announced, chunks: Chunks, held: Holding) -> bytes:
        """A blob's bytes; its digest is not checked yet.

        Args:
            chunks: From the offset on.
            held: Grows with what is in memory.

        Raises:
            InvalidArgument: More bytes come than were announced.
            FailedPrecondition: The offset is not what the store holds.
            DataLoss: They end early; what came is kept.
            DeadlineExceeded: They come too slowly; what came is kept.
        """
        if blob.offset:
            return await self._resumed(blob, chunks, held)
        return await self._collected(blob, chunks, held)

    async def _collected(self, blob: Announced, chunks: Chunks, held: Holding) -> bytes:
        data = bytearray()
        is_whole = False
        try:
            async for chunk in chunks:
                await held.grow(len(chunk))
                data += chunk
                if len(data) > blob.size_bytes:
                    raise InvalidArgument("chunk", "more bytes than header.size_bytes")
            is_whole = len(data) == blob.size_bytes
        except asyncio.CancelledError:
            self._kept(blob, bytes(data), held.hand_over())
            raise
        except DeadlineExceeded as error:
            await asyncio.shield(self._kept(blob, bytes(data), held.hand_over()))
            raise _resumable(error) from None
        if not is_whole:
            # Requests end before the call does when a caller goes away.
            await asyncio.shield(self._kept(blob, bytes(data), held.hand_over()))
            raise _truncated(len(data), blob.size_bytes)
        return bytes(data)

    async def _resumed(self, blob: Announced, chunks: Chunks, held: Holding) -> bytes:
        held_bytes = await self.held_bytes(blob.owner, blob.sha256)
        if blob.offset != held_bytes:
            raise FailedPrecondition(
                f"the store holds {held_bytes} bytes of this blob: go on from there",
                reason="WRONG_OFFSET",
            )
        if blob.offset < blob.size_bytes:
            try:
                await self._write(blob, blob.offset, chunks)
            except DeadlineExceeded as error:
                raise _resumable(error) from None
        await held.grow(blob.size_bytes)
        return await self._blobs.read(blob.sha256)

    async def _write(self, blob: Announced, offset: int, chunks: Chunks) -> None:
        async def requests() -> AsyncIterator[pb.WriteBlobRequest]:
            yield pb.WriteBlobRequest(
                sha256=blob.sha256, size_bytes=blob.size_bytes, offset=offset, owner=blob.owner
            )
            async for chunk in chunks:
                yield pb.WriteBlobRequest(data=chunk)

        await write_blob(self._stub, requests())

    def _kept(self, blob: Announced, data: bytes, held: Holding) -> asyncio.Task[None]:
        """Keep what came, also if the caller is gone."""
        task = asyncio.create_task(self._keep(blob, data))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        task.add_done_callback(lambda _: held.release())
        return task

    async def _keep(self, blob: Announced, data: bytes) -> None:
        """Let the store keep the beginning of a blob, for a resume."""
        if not data:
            return

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 1 << 20):
                yield data[start : start + (1 << 20)]

        try:
            await self._write(blob, 0, pieces())
        except DataLoss:
            return  # as it must be: the store has taken what there was
        except HmiError as error:
            logger.info("a broken upload begins again", extra={"error": error.message})


def _resumable(error: DeadlineExceeded) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{error.message}: what came is kept, resume it from where GetUpload says",
        reason=error.reason,
    )


def _truncated(num_bytes: int, size_bytes: int) -> DataLoss:
    return DataLoss(
        f"the stream ended after {num_bytes} of {size_bytes} bytes: resume it",
        reason="UPLOAD_TRUNCATED",
    )
