"""Domains on their way in: counts and encoder understood before a node counts on them.

Knows a tree's nodes and what a new one may be; its tables are the knowledge store's and the
executors'.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from hmi.admin.v1 import domain_pb2, resources_pb2
from hmi.knowledge.v1 import domain_pb2 as pb
from services.common.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from services.common.ids import (
    check_name,
    check_own_path,
    check_path,
    check_sha256,
    domain_label,
    parent_path,
)
from services.common.knowledge import BlobCache, Blobs
from services.common.local_encoder_format import LocalEncoderFile, check_local_encoder
from services.gateway.admission import Admission
from services.gateway.arrivals import Announced, Arrivals
from services.gateway.bases import Pieces
from services.gateway.budget import ByteBudget, Holding
from services.gateway.counts import check_counts
from services.gateway.domain import Base, Caller
from services.gateway.mirror import Mirror
from services.gateway.store_calls import ask
from services.gateway.uploads import CallerCheck, check_request_id

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub


def split_base(mirror: Mirror, field: str, name: str) -> Base:
    """The split base of a name.

    Raises:
        InvalidArgument: It can be the name of nothing.
        NotFound: There is no such base.
        FailedPrecondition: It has no tables, as it is not split.
    """
    base = mirror.state.bases.get(check_name(field, name))
    if base is None:
        raise NotFound(f"there is no base '{name}'", reason="BASE_NOT_FOUND")
    if not base.is_split:
        raise FailedPrecondition(
            f"base '{name}' is not split, so it has no domains: `hmi bases list` shows which are",
            reason="BASE_NOT_SPLIT",
        )
    return base


def node(mirror: Mirror, caller: Caller, base: str, path: str) -> resources_pb2.Domain:
    """A node that the caller sees; an empty path is the root.

    Raises:
        InvalidArgument: The base's name or the path.
        NotFound: Base or node; another tenant's node is none.
        FailedPrecondition: The base is not split.
    """
    split_base(mirror, "base", base)
    if path:
        check_path("path", path)
    return mirror.domain("" if caller.is_admin else caller.tenant, base, path)


def own_node(mirror: Mirror, caller: Caller, base: str, path: str) -> resources_pb2.Domain:
    """A node that the caller may change.

    Raises:
        PermissionDenied: It is shared, and the caller no admin.
        InvalidArgument, NotFound, FailedPrecondition: As `node`.
    """
    found = node(mirror, caller, base, path)
    if not caller.is_admin and found.tenant != caller.tenant:
        raise PermissionDenied(
            f"{domain_label(path)} is shared: an admin key is needed to change it",
            reason="NOT_ADMIN",
        )
    return found


def check_settings(
    prefix: str, settings: resources_pb2.Domain | domain_pb2.SetDomainRequest
) -> None:
    """What of a node can be chosen, within its bounds.

    Raises:
        InvalidArgument: Naming the field after `prefix`.
    """
    if settings.miss_policy not in resources_pb2.MissPolicy.values():
        raise InvalidArgument(f"{prefix}miss_policy", f"{settings.miss_policy} is none")
    if not 0 <= settings.alpha <= 1:
        raise InvalidArgument(f"{prefix}alpha", "must be a share from 0 to 1; 0 is the default")


class DomainUploads:
    """Takes new nodes.

    Args:
        cache: Where the root's encoder comes from.
        max_bytes: Largest counts, and largest encoder.
        memory: What all uploads together may hold in memory.
    """

    def __init__(
        self,
        stub: KnowledgeServiceAsyncStub,
        mirror: Mirror,
        admission: Admission,
        arrivals: Arrivals,
        cache: BlobCache,
        max_bytes: int,
        memory: ByteBudget,
    ) -> None:
        self._stub = stub
        self._blobs = Blobs(stub)
        self._mirror = mirror
        self._admission = admission
        self._arrivals = arrivals
        self._cache = cache
        self._max_bytes = max_bytes
        self._memory = memory

    async def create(
        self,
        caller: Caller,
        header: domain_pb2.CreateDomainHeader,
        chunks: AsyncIterator[bytes],
        check_caller: CallerCheck,
    ) -> resources_pb2.Domain:
        """Add a node.

        Raises:
            Unauthenticated, Unavailable: `check_caller` said so once the bytes were there.
            InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, ResourceExhausted: As
                CreateDomain's contract says.
            DataLoss: The bytes end early.
        """
        base = split_base(self._mirror, "header.domain.base", header.domain.base)
        self._check_header(header)
        domain = self._new_node(caller, header)
        if header.is_dry_run:
            self._check_free(domain)
            return domain
        with self._memory.holding() as held:
            pieces = Pieces(chunks)
            counts = await self._counts(caller.tenant, header, pieces, held)
            encoder = await _encoder(header, pieces, held)
            await pieces.check_end()
            await self._check_blobs(base, counts, encoder)
            check_caller()
            for blob in filter(None, (counts, encoder)):
                await self._blobs.write(blob, caller.tenant)
        request = pb.CreateDomainRequest(
            domain=domain, counts_sha256=header.counts_sha256, request_id=header.request_id
        )
        created = (await ask(self._stub.CreateDomain(request))).domain
        tree = self._mirror.state.domains
        await self._mirror.until(lambda: created.path in tree.get(created.base, {}))
        return created

    def _check_header(self, header: domain_pb2.CreateDomainHeader) -> None:
        check_path("header.domain.path", header.domain.path)
        check_settings("header.domain.", header.domain)
        check_request_id(header.request_id)
        for part in ("counts", "encoder"):
            sha256, size = getattr(header, f"{part}_sha256"), getattr(header, f"{part}_bytes")
            if sha256:
                check_sha256(f"header.{part}_sha256", sha256)
            if bool(sha256) != bool(size):
                raise InvalidArgument(
                    f"header.{part}_bytes", f"must be given with {part}_sha256, and only with it"
                )
            if part == "counts" and header.counts_offset > size:
                raise InvalidArgument("header.counts_offset", "is beyond counts_bytes")
            if size > self._max_bytes:
                raise ResourceExhausted(
                    f"header.{part}_bytes: {size} is more than the {self._max_bytes} bytes taken",
                    reason="UPLOAD_TOO_LARGE",
                )

    def _new_node(
        self, caller: Caller, header: domain_pb2.CreateDomainHeader
    ) -> resources_pb2.Domain:
        """What of a node can be chosen; below a tenant's node all is that tenant's."""
        given = header.domain
        parent = self._mirror.domain(caller.tenant, given.base, parent_path(given.path))
        tenant = caller.tenant or parent.tenant
        if tenant and not parent.tenant:
            check_own_path("header.domain.path", given.path, tenant)
        if given.tenant not in ("", tenant):
            raise InvalidArgument(
                "header.domain.tenant",
                "follows from the key, the parent, or x-hmi-tenant of an admin: "
                f"it would be '{tenant}'",
            )
        return resources_pb2.Domain(
            base=given.base,
            path=given.path,
            tenant=tenant,
            miss_policy=given.miss_policy,
            encoder_sha256=header.encoder_sha256,
            alpha=given.alpha,
            byte_budget=given.byte_budget,
            half_life_tokens=given.half_life_tokens,
            is_frozen=given.is_frozen,
        )

    def _check_free(self, domain: resources_pb2.Domain) -> None:
        if domain.path in self._mirror.state.domains.get(domain.base, {}):
            raise AlreadyExists(
                f"base '{domain.base}' has a domain '{domain.path}' already",
                reason="DOMAIN_EXISTS",
            )

    async def _counts(
        self, owner: str, header: domain_pb2.CreateDomainHeader, pieces: Pieces, held: Holding
    ) -> bytes:
        if not header.counts_sha256:
            return b""
        size, offset = header.counts_bytes, header.counts_offset
        announced = Announced(owner, header.counts_sha256, size, offset)
        data = await self._arrivals.take(announced, pieces.up_to(size - offset), held)
        await _check_digest("counts", data, header.counts_sha256)
        return data

    async def _check_blobs(self, base: Base, counts: bytes, encoder: bytes) -> None:
        config = await self._admission.config(base)
        if counts:
            await asyncio.to_thread(
                check_counts, "counts", counts, base.tokenizer_digest, config.vocab_size
            )
        if not encoder:
            return
        of_root = await self._cache.path(base.pb.split.encoder_sha256)

        def check() -> None:
            unsplit = base.pb.split.unsplit_digest
            own = check_local_encoder("encoder", encoder, config, unsplit, self._max_bytes)
            blob = of_root.read_bytes()
            root = check_local_encoder("root", blob, config, unsplit, len(blob))
            _check_alike(own, root)

        await asyncio.to_thread(check)


def _check_alike(own: LocalEncoderFile, root: LocalEncoderFile) -> None:
    """Rows of all encoders on a path are mixed, so they must fit each other."""
    if own.split_layer != root.split_layer:
        raise InvalidArgument(
            "encoder.metadata.split", f"is {own.split_layer}, the base's is {root.split_layer}"
        )
    if own.form != root.form:
        raise InvalidArgument("encoder.metadata.form", f"is {own.form}, the base's is {root.form}")
    if own.merge_sha256 != root.merge_sha256:
        raise InvalidArgument(
            "encoder.tensors[positions]",
            "positions, types and norm must be the root's: only layers and gate may be adapted",
            reason="MERGE_DIFFERS",
        )


async def _encoder(header: domain_pb2.CreateDomainHeader, pieces: Pieces, held: Holding) -> bytes:
    data = bytearray()
    async for piece in pieces.take(header.encoder_bytes):
        await held.grow(len(piece))
        data += piece
    if data:
        await _check_digest("encoder", data, header.encoder_sha256)
    return bytes(data)


async def _check_digest(part: str, data: bytes | bytearray, sha256: str) -> None:
    if await asyncio.to_thread(lambda: hashlib.sha256(data).hexdigest()) != sha256:
        raise InvalidArgument(f"header.{part}_sha256", "the bytes have another digest")
