"""The client's calls about domains: the trees of tables of split bases.

Knows `hmi.admin.v1.DomainService`; does not know how n-grams are counted, nor what an encoder is.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from hmi.admin.v1 import domain_pb2, resources_pb2
from hmi.admin.v1.domain_pb2_grpc import DomainServiceStub
from hmi.client.domain_resources import Domain, DomainStats, DomainUpdate, MissPolicy
from hmi.client.messages import build
from hmi.client.retry import Deadline
from hmi.client.transport import Repeat
from hmi.client.uploads import Progress, UploadCalls, chunks_of, with_progress
from hmi.errors import HmiError

if TYPE_CHECKING:
    from hmi.admin.v1.domain_pb2_grpc import DomainServiceAsyncStub


class DomainCalls(UploadCalls):
    """Domains. A tenant sees shared ones and its own, and changes its own; an admin all."""

    @property
    def _domains(self) -> DomainServiceAsyncStub:
        return DomainServiceStub(self._transport.channel)

    async def create_domain(
        self,
        base: str,
        path: str,
        *,
        counts: Path | bytes | None = None,
        encoder: Path | bytes | None = None,
        miss_policy: MissPolicy = MissPolicy.UNSPECIFIED,
        alpha: float = 0.0,
        byte_budget: int = 0,
        half_life_tokens: int = 0,
        dry_run: bool = False,
        request_id: str | None = None,
        progress: Progress | None = None,
        timeout: float | None = None,
    ) -> Domain:
        """Add a node below the path's prefix; its first table is made afterwards.

        With a tenant's key, or for a tenant, it is that tenant's; otherwise everyone sees it. A
        broken connection is taken up where the store's bytes of the counts end; it is made once.

        Args:
            base: Name of a split base.
            path: Names joined by '/'.
            counts: N-gram counts of its corpus, their file or bytes; None: it begins without rows.
            encoder: A local encoder of its own, its file or bytes; None: it inherits its parent's.
            miss_policy: What stands for a miss; unspecified: back-off.
            alpha: Share of the counted occurrences that its table is to cover; 0: the default.
            byte_budget: Bytes its own rows may take; 0: the default.
            half_life_tokens: Tokens after which a count weighs half; 0: the default.
            dry_run: Only check what is said of it, without counts and encoder.
            request_id: Makes a repetition by the caller safe; one is made up if None.
            progress: Called with (bytes sent, bytes in all).

        Raises:
            InvalidArgument: A field, or counts or encoder that are not of this base.
            NotFound: There is no such base, or no parent.
            AlreadyExists: There is a node of that path.
            FailedPrecondition: The base is not split.
            PermissionDenied: It would be everyone's, and the key is no admin's.
            ResourceExhausted: Too large, or too many nodes.
        """
        blobs = [await asyncio.to_thread(_bytes_of, source) for source in (counts, encoder)]
        digests = [hashlib.sha256(blob).hexdigest() if blob else "" for blob in blobs]
        header = build(
            domain_pb2.CreateDomainHeader,
            domain=build(
                resources_pb2.Domain,
                base=base,
                path=path,
                miss_policy=miss_policy.to_pb(),
                alpha=alpha,
                byte_budget=byte_budget,
                half_life_tokens=half_life_tokens,
            ),
            counts_sha256=digests[0],
            counts_bytes=len(blobs[0]),
            encoder_sha256=digests[1],
            encoder_bytes=len(blobs[1]),
            request_id=request_id or uuid.uuid4().hex,
            is_dry_run=dry_run,
        )

        def messages() -> AsyncIterator[domain_pb2.CreateDomainRequest]:
            offset = header.counts_offset
            chunks = itertools.chain(chunks_of(blobs[0], offset), chunks_of(blobs[1], 0))
            return with_progress(
                domain_pb2.CreateDomainRequest(header=header),
                (domain_pb2.CreateDomainRequest(chunk=chunk) for chunk in chunks),
                (offset, len(blobs[0]) + len(blobs[1])),
                progress,
            )

        deadline = Deadline(timeout)
        for attempt in itertools.count(1):
            if blobs[0]:
                left = deadline.remaining()
                header.counts_offset = await self.get_upload(digests[0], timeout=left)
            try:
                response = await self._upload(self._domains.CreateDomain, messages(), deadline)
                return Domain.from_pb(response.domain)
            except HmiError as error:
                await self._transport.pause(error, attempt, deadline)
        raise AssertionError("unreachable: the loop ends by returning or raising")

    async def get_domain(self, base: str, path: str, *, timeout: float | None = None) -> Domain:
        """One node; an empty path is the root.

        Raises:
            NotFound: There is no such base or node.
            FailedPrecondition: The base is not split.
        """
        request = build(domain_pb2.GetDomainRequest, base=base, path=path)
        response = await self._transport.unary(self._domains.GetDomain, request, timeout=timeout)
        return Domain.from_pb(response.domain)

    async def list_domains(self, base: str, *, timeout: float | None = None) -> list[DomainStats]:
        """A tree's nodes with what they hold, parents before children.

        Raises:
            NotFound: There is no such base.
            FailedPrecondition: The base is not split.
        """
        request = build(domain_pb2.ListDomainsRequest, base=base)
        response = await self._transport.unary(self._domains.ListDomains, request, timeout=timeout)
        return [DomainStats.from_pb(one) for one in response.nodes]

    async def set_domain(
        self,
        base: str,
        path: str,
        *,
        miss_policy: MissPolicy | None = None,
        alpha: float | None = None,
        byte_budget: int | None = None,
        half_life_tokens: int | None = None,
        is_frozen: bool | None = None,
        timeout: float | None = None,
    ) -> Domain:
        """Change a node; what is None stays. Arguments as `create_domain`.

        Args:
            is_frozen: Whether scheduled updates pass it by.

        Raises:
            InvalidArgument: A field.
            NotFound: There is no such base or node.
            PermissionDenied: It is shared, and the key is no admin's.
        """
        request = build(
            domain_pb2.SetDomainRequest,
            base=base,
            path=path,
            miss_policy=None if miss_policy is None else miss_policy.to_pb(),
            alpha=alpha,
            byte_budget=byte_budget,
            half_life_tokens=half_life_tokens,
            is_frozen=is_frozen,
        )
        response = await self._transport.unary(self._domains.SetDomain, request, timeout=timeout)
        return Domain.from_pb(response.domain)

    async def delete_domain(self, base: str, path: str, *, timeout: float | None = None) -> None:
        """Delete a leaf that no version reads.

        Raises:
            NotFound: There is no such base or node.
            FailedPrecondition: Versions read it, it has children, or it is the root.
            PermissionDenied: It is shared, and the key is no admin's.
        """
        request = build(domain_pb2.DeleteDomainRequest, base=base, path=path)
        await self._transport.delete(self._domains.DeleteDomain, request, timeout=timeout)

    async def update_domains(
        self, base: str, path: str = "", *, dry_run: bool = False, timeout: float | None = None
    ) -> DomainUpdate:
        """Make new tables from what was counted (admin); what changes is answered at once.

        Args:
            path: Only this node and those below it; empty: all.
            dry_run: Say what would change, and change nothing.

        Raises:
            NotFound: There is no such base or node.
            FailedPrecondition: The base is not split, or an update is being worked on.
        """
        request = build(domain_pb2.UpdateDomainsRequest, base=base, path=path, is_dry_run=dry_run)
        response = await self._transport.unary(
            self._domains.UpdateDomains,
            request,
            timeout=timeout,
            repeat=Repeat.SAFE if dry_run else Repeat.UNSAFE,
        )
        return DomainUpdate.from_pb(response)

    async def roll_back_domain(
        self, base: str, path: str, *, timeout: float | None = None
    ) -> Domain:
        """Return a node to the rows before its last commit. Not retried: twice goes further back.

        Raises:
            NotFound: There is no such base or node.
            FailedPrecondition: There is nothing to return to, or an update is being worked on.
            PermissionDenied: It is shared, and the key is no admin's.
        """
        request = build(domain_pb2.RollBackDomainRequest, base=base, path=path)
        response = await self._transport.unary(
            self._domains.RollBackDomain, request, timeout=timeout, repeat=Repeat.UNSAFE
        )
        return Domain.from_pb(response.domain)


def _bytes_of(source: Path | bytes | None) -> bytes:
    if source is None:
        return b""
    return source if isinstance(source, bytes) else source.read_bytes()
