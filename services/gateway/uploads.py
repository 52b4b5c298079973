"""Versions on their way in: take the bytes, check them, store the blob, commit the version.

Knows the store; how bytes come is `arrivals`', and what a blob holds is admission's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.rpc import status_pb2

from hmi.admin.v1 import model_pb2, resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import (
    HmiError,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    from_status,
)
from services.common.ids import check_name, check_path, check_sha256
from services.common.knowledge import Blobs
from services.gateway.admission import Admission
from services.gateway.arrivals import Announced, Arrivals, Chunks
from services.gateway.budget import ByteBudget
from services.gateway.domain import Base
from services.gateway.mirror import Mirror, current_table
from services.gateway.store_calls import ask

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

_MAX_REQUEST_ID_CHARS = 128

# Raises if the caller's key was revoked since the call began.
CallerCheck = Callable[[], None]


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
        arrivals: Arrivals,
        max_bytes: int,
        memory: ByteBudget,
    ) -> None:
        self._stub = stub
        self._blobs = Blobs(stub)
        self._mirror = mirror
        self._admission = admission
        self._max_bytes = max_bytes
        self.arrivals = arrivals
        self.memory = memory

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
            announced = Announced(tenant, header.sha256, header.size_bytes, header.offset)
            blob = await self.arrivals.take(announced, chunks, held)
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
