"""hmi.admin.v1.DomainService: the trees of tables of split bases.

Knows the messages and who may ask; the knowledge store decides the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import grpc.aio

from hmi.admin.v1 import domain_pb2 as pb
from hmi.admin.v1 import resources_pb2
from hmi.admin.v1.domain_pb2_grpc import DomainServiceServicer
from hmi.knowledge.v1 import domain_pb2 as store_pb
from services.gateway.auth import Authenticator
from services.gateway.domain import Caller
from services.gateway.domains import DomainUploads, check_settings, node, own_node, split_base
from services.gateway.mirror import Mirror
from services.gateway.servicers.parts import Parts
from services.gateway.store_calls import ask
from services.gateway.streams import Pace

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]

_Chosen = Literal["miss_policy", "alpha", "byte_budget", "half_life_tokens", "is_frozen"]
_CHOSEN: tuple[_Chosen, ...] = get_args(_Chosen)


class DomainServicer(DomainServiceServicer):
    """Administers domains."""

    def __init__(
        self,
        auth: Authenticator,
        stub: KnowledgeServiceAsyncStub,
        mirror: Mirror,
        uploads: DomainUploads,
        pace: Pace,
    ) -> None:
        self._auth = auth
        self._stub = stub
        self._mirror = mirror
        self._uploads = uploads
        self._pace = pace

    async def CreateDomain(
        self, request_iterator: AsyncIterator[pb.CreateDomainRequest], context: Context
    ) -> pb.CreateDomainResponse:
        caller = self._caller(context)
        parts = Parts(aiter(request_iterator), self._pace)
        header = await parts.header()
        check_caller = partial(self._auth.check_still_valid, caller)
        chunks = parts.chunks(f"domain '{header.domain.path}'")
        created = await self._uploads.create(caller, header, chunks, check_caller)
        return pb.CreateDomainResponse(domain=created)

    async def GetDomain(
        self, request: pb.GetDomainRequest, context: Context
    ) -> pb.GetDomainResponse:
        found = node(self._mirror, self._caller(context), request.base, request.path)
        return pb.GetDomainResponse(domain=found)

    async def ListDomains(
        self, request: pb.ListDomainsRequest, context: Context
    ) -> pb.ListDomainsResponse:
        caller = self._caller(context)
        split_base(self._mirror, "base", request.base)
        asked = store_pb.GetDomainStatsRequest(base=request.base)
        nodes = (await ask(self._stub.GetDomainStats(asked))).nodes
        return pb.ListDomainsResponse(nodes=_seen_by(caller, nodes))

    async def SetDomain(
        self, request: pb.SetDomainRequest, context: Context
    ) -> pb.SetDomainResponse:
        own_node(self._mirror, self._caller(context), request.base, request.path)
        check_settings("", request)
        chosen = {name: getattr(request, name) for name in _CHOSEN if request.HasField(name)}
        change = store_pb.SetDomainRequest(base=request.base, path=request.path, **chosen)
        changed = (await ask(self._stub.SetDomain(change))).domain

        def is_seen() -> bool:
            known = self._known(changed)
            return known is not None and all(
                getattr(known, name) == getattr(changed, name) for name in _CHOSEN
            )

        await self._mirror.until(is_seen)
        return pb.SetDomainResponse(domain=changed)

    async def DeleteDomain(
        self, request: pb.DeleteDomainRequest, context: Context
    ) -> pb.DeleteDomainResponse:
        own = own_node(self._mirror, self._caller(context), request.base, request.path)
        delete = store_pb.DeleteDomainRequest(base=request.base, path=request.path)
        await ask(self._stub.DeleteDomain(delete))
        await self._mirror.until(lambda: self._known(own) is None)
        return pb.DeleteDomainResponse()

    async def UpdateDomains(
        self, request: pb.UpdateDomainsRequest, context: Context
    ) -> pb.UpdateDomainsResponse:
        caller = self._auth.admin(context.invocation_metadata())
        node(self._mirror, caller, request.base, request.path)
        update = store_pb.UpdateDomainsRequest(
            base=request.base, path=request.path, is_dry_run=request.is_dry_run
        )
        answer = await ask(self._stub.UpdateDomains(update))
        return pb.UpdateDomainsResponse(update_id=answer.update_id, changes=answer.changes)

    async def RollBackDomain(
        self, request: pb.RollBackDomainRequest, context: Context
    ) -> pb.RollBackDomainResponse:
        own_node(self._mirror, self._caller(context), request.base, request.path)
        roll_back = store_pb.RollBackDomainRequest(base=request.base, path=request.path)
        changed = (await ask(self._stub.RollBackDomain(roll_back))).domain

        def is_seen() -> bool:
            known = self._known(changed)
            return known is None or known.table_number >= changed.table_number

        await self._mirror.until(is_seen)
        return pb.RollBackDomainResponse(domain=changed)

    def _caller(self, context: Context) -> Caller:
        return self._auth.caller(context.invocation_metadata())

    def _known(self, domain: resources_pb2.Domain) -> resources_pb2.Domain | None:
        return self._mirror.state.domains.get(domain.base, {}).get(domain.path)


def _seen_by(caller: Caller, nodes: Iterable[pb.DomainStats]) -> Iterable[pb.DomainStats]:
    """The nodes that a caller sees. Counts are traffic, and traffic is for admins to see."""
    if caller.is_admin:
        return nodes
    seen = [stats for stats in nodes if stats.domain.tenant in ("", caller.tenant)]
    for stats in seen:
        stats.ClearField("counted_tokens")
        stats.ClearField("lookups")
        if not stats.domain.tenant:
            stats.ClearField("num_versions")
            stats.ClearField("version_bytes")
    return seen
