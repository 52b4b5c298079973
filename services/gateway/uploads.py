"""Versions on their way in: collect the bytes, check them, store the blob, commit the version.

Knows upload streams and the store; what a blob holds is admission's. A whole upload is checked
before the store sees it; a resumed one, whose beginning only the store has, goes to the store and
is checked there. Only a blob that one of the tenant's own versions has can be named without its
bytes: a digest is no proof of having them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.rpc import status_pb2

from hmi.admin.v1 import model_pb2, resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import (
    DataLoss,
    FailedPrecondition,
    HmiError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    from_status,
)
from services.common.ids import check_name, check_path, check_sha256
from services.common.knowledge import Blobs
from services.gateway.admission import Admission
from services.gateway.budget import ByteBudget, Holding
from services.gateway.domain import Base
from services.gateway.mirror import Mirror, current_table
from services.gateway.store_calls import ask, write_blob

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

_MAX_REQUEST_ID_CHARS = 128

# Raises if the caller's key was revoked since the call began.
CallerCheck = Callable[[], None]
Chunks = AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Checked:
    """A version whose blob is checked, to be committed."""

    new: pb.NewVersion
    blob: bytes


class VersionUploads:
    """Takes versions.

    Args:
        max_bytes: Largest blob.
        memory: What all uploads together may hold in memory.
    """

    def __init__(
        self,
        stub: KnowledgeServiceAsyncStub,
        mirror: Mirror,
        admission: Admission,
        max_bytes: int,
        memory: ByteBudget,
    ) -> None:
        self._stub = stub
        self._blobs = Blobs(stub)
        self._mirror = mirror
        self._admission = admission
        self._max_bytes = max_bytes
        self._keeping: set[asyncio.Task[None]] = set()
        self.memory = memory

    async def held_bytes(self, tenant: str, sha256: str) -> int:
        """How much of a blob need not be sent again."""
        check_sha256("sha256", sha256)
        held = await ask(self._stub.StatBlob(pb.StatBlobRequest(sha256=sha256, owner=tenant)))
        if held.is_complete and not self._mirror.owns_blob(tenant, sha256):
            return 0
        return held.committed_bytes

    def check_header(self, tenant: str, header: model_pb2.UploadHeader) -> Base:
        """The base of an announced upload.

        Raises:
            InvalidArgument: A field of the header.
            NotFound: The base, or the domain.
            FailedPrecondition: The domain's first table is not there yet.
            ResourceExhausted: Too large.
        """
        check_name("header.model", header.model)
        check_name("header.base", header.base)
        check_sha256("header.sha256", header.sha256)
        check_request_id(header.request_id)
        if not header.size_bytes:
            raise InvalidArgument("header.size_bytes", "must be at least 1")
        if header.size_bytes > self._max_bytes:
            raise ResourceExhausted(
                f"header.size_bytes: {header.size_bytes} is more than the {self._max_bytes} bytes "
                "that a version may have",
                reason="UPLOAD_TOO_LARGE",
            )
        if header.offset > header.size_bytes:
            raise InvalidArgument("header.offset", "is beyond size_bytes")
        base = self._mirror.state.bases.get(header.base)
        if base is None:
            raise NotFound(f"there is no base '{header.base}'", reason="BASE_NOT_FOUND")
        self._table_version(tenant, header, base)
        return base

    def _table_version(self, tenant: str, header: model_pb2.UploadHeader, base: Base) -> str:
        """The tables that a version pushed now reads; none on a base that is not split."""
        if base.is_split:
            if header.domain:
                check_path("header.domain", header.domain)
            return current_table(self._mirror.domain(tenant, header.base, header.domain))
        for field in ("domain", "follow"):
            if getattr(header, field):
                raise InvalidArgument(
                    f"header.{field}",
                    f"base '{header.base}' is not split, so it has no domains: leave it out, or "
                    "name a split base",
                    reason="BASE_NOT_SPLIT",
                )
        return ""

    async def upload(
        self,
        tenant: str,
        header: model_pb2.UploadHeader,
        chunks: Chunks,
        check_caller: CallerCheck,
    ) -> resources_pb2.Version:
        """One version.

        Raises:
            Unauthenticated, Unavailable: `check_caller` said so once the bytes were there.
            InvalidArgument, NotFound, FailedPrecondition, ResourceExhausted: As UploadVersion's
                contract says.
            DataLoss: The bytes end early; what came is kept.
        """
        base = self.check_header(tenant, header)
        with self.memory.holding() as held:
            if header.offset:
                blob = await self._resumed(tenant, header, chunks, held)
            else:
                blob = await self._collected(tenant, header, chunks, held)
            checked = await self.checked(tenant, header, blob, base)
            check_caller()
            [outcome] = await self.commit([checked])
        if isinstance(outcome, HmiError):
            raise outcome
        return outcome

    async def checked(
        self, tenant: str, header: model_pb2.UploadHeader, blob: bytes, base: Base
    ) -> Checked:
        """A collected blob, checked.

        Raises:
            InvalidArgument: It cannot be served.
            NotFound, FailedPrecondition: The domain went while the bytes came.
        """
        version = await self._admission.check(tenant, header, blob, base)
        version.domain, version.follow = header.domain, header.follow
        version.table_version = self._table_version(tenant, header, base)
        new = pb.NewVersion(
            version=version, no_activate=header.no_activate, request_id=header.request_id
        )
        return Checked(new, blob)

    async def commit(self, group: Sequence[Checked]) -> list[resources_pb2.Version | HmiError]:
        """Store the blobs, then add the versions in one transaction; an outcome each.

        Raises:
            HmiError: The store cannot do it now; no version was added.
        """
        await asyncio.gather(
            *(self._blobs.write(checked.blob, checked.new.version.tenant) for checked in group)
        )
        request = pb.CreateVersionsRequest(versions=[checked.new for checked in group])
        created = (await ask(self._stub.CreateVersions(request))).versions
        outcomes = [_outcome(entry) for entry in created]
        versions = [entry for entry in outcomes if isinstance(entry, resources_pb2.Version)]
        await self._mirror.until(lambda: all(self._is_known(version) for version in versions))
        return outcomes

    def _is_known(self, version: resources_pb2.Version) -> bool:
        model = self._mirror.state.models.get(version.tenant, {}).get(version.model)
        return (
            model is not None and model.pb is not None and model.pb.last_version >= version.number
        )

    async def _collected(
        self, tenant: str, header: model_pb2.UploadHeader, chunks: Chunks, held: Holding
    ) -> bytes:
        data = bytearray()
        is_whole = False
        try:
            async for chunk in chunks:
                await held.grow(len(chunk))
                data += chunk
                if len(data) > header.size_bytes:
                    raise InvalidArgument("chunk", "more bytes than header.size_bytes")
            is_whole = len(data) == header.size_bytes
        except asyncio.CancelledError:
            self._kept(tenant, header, bytes(data), held.hand_over())
            raise
        if not is_whole:
            # Requests end before the call does when a caller goes away.
            await asyncio.shield(self._kept(tenant, header, bytes(data), held.hand_over()))
            raise _truncated(len(data), header.size_bytes)
        return bytes(data)

    async def _resumed(
        self, tenant: str, header: model_pb2.UploadHeader, chunks: Chunks, held: Holding
    ) -> bytes:
        held_bytes = await self.held_bytes(tenant, header.sha256)
        if header.offset != held_bytes:
            raise FailedPrecondition(
                f"header.offset: the store holds {held_bytes} bytes of this blob",
                reason="WRONG_OFFSET",
            )
        if header.offset < header.size_bytes:
            await self._write_rest(tenant, header, chunks)
        await held.grow(header.size_bytes)
        return await self._blobs.read(header.sha256)

    async def _write_rest(
        self, tenant: str, header: model_pb2.UploadHeader, chunks: Chunks
    ) -> None:
        async def requests() -> AsyncIterator[pb.WriteBlobRequest]:
            yield pb.WriteBlobRequest(
                sha256=header.sha256,
                size_bytes=header.size_bytes,
                offset=header.offset,
                owner=tenant,
            )
            async for chunk in chunks:
                yield pb.WriteBlobRequest(data=chunk)

        await write_blob(self._stub, requests())

    def _kept(
        self, tenant: str, header: model_pb2.UploadHeader, data: bytes, held: Holding
    ) -> asyncio.Task[None]:
        """Keep what came, also if the caller is gone."""
        task = asyncio.create_task(self._keep(tenant, header, data))
        self._keeping.add(task)
        task.add_done_callback(self._keeping.discard)
        task.add_done_callback(lambda _: held.release())
        return task

    async def _keep(self, tenant: str, header: model_pb2.UploadHeader, data: bytes) -> None:
        """Let the store keep the beginning of a blob, for a resume."""
        if not data:
            return

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 1 << 20):
                yield data[start : start + (1 << 20)]

        begin = model_pb2.UploadHeader(sha256=header.sha256, size_bytes=header.size_bytes)
        try:
            await self._write_rest(tenant, begin, pieces())
        except DataLoss:
            return  # as it must be: the store has taken what there was
        except HmiError as error:
            logger.info("a broken upload begins again", extra={"error": error.message})


def check_request_id(value: str) -> None:
    """Raise InvalidArgument if a header's request id is too long to be kept."""
    if len(value) > _MAX_REQUEST_ID_CHARS:
        raise InvalidArgument(
            "header.request_id", f"is longer than {_MAX_REQUEST_ID_CHARS} characters"
        )


def _outcome(created: pb.CreatedVersion) -> resources_pb2.Version | HmiError:
    if created.error_code == 0:
        return created.version
    status = status_pb2.Status(code=created.error_code, message=created.error_message)
    return from_status(status)


def _truncated(num_bytes: int, size_bytes: int) -> DataLoss:
    return DataLoss(
        f"the stream ended after {num_bytes} of {size_bytes} bytes: resume it",
        reason="UPLOAD_TRUNCATED",
    )
