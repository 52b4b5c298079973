"""The gateway's parts, put together in the order they need each other.

Knows every part; does not know the process it runs in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import grpc.aio

from hmi.admin.v1.domain_pb2_grpc import add_DomainServiceServicer_to_server
from hmi.admin.v1.model_pb2_grpc import add_ModelServiceServicer_to_server
from hmi.admin.v1.tenant_pb2_grpc import add_TenantServiceServicer_to_server
from hmi.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from hmi.oip.v1.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from services.common.follow import follow
from services.common.knowledge import BlobCache, Blobs, open_channel
from services.gateway.admission import Admission
from services.gateway.arrivals import Arrivals
from services.gateway.auth import Authenticator
from services.gateway.bases import BaseUploads
from services.gateway.budget import ByteBudget
from services.gateway.config import GatewaySettings
from services.gateway.domains import DomainUploads
from services.gateway.limits import Limits
from services.gateway.mirror import Mirror
from services.gateway.oip.extensions import Extensions
from services.gateway.predictor import Predictor
from services.gateway.quota_leases import QuotaLeases
from services.gateway.router import Router
from services.gateway.servicers.domains import DomainServicer
from services.gateway.servicers.inference import InferenceServicer
from services.gateway.servicers.models import ModelServicer
from services.gateway.servicers.oip import OpenInferenceServicer
from services.gateway.servicers.tenants import TenantServicer
from services.gateway.streams import Pace
from services.gateway.tokenization import Tokenization
from services.gateway.uploads import VersionUploads
from services.gateway.usage import Usage

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

Adders = dict[str, Callable[[grpc.aio.Server], None]]


@dataclass(frozen=True, slots=True)
class App:
    """A gateway that is ready to be served."""

    adders: Adders
    knowledge: KnowledgeServiceAsyncStub
    mirror: Mirror
    router: Router


@dataclass(frozen=True, slots=True)
class _Parts:
    """What servicers are made of."""

    settings: GatewaySettings
    knowledge: KnowledgeServiceAsyncStub
    mirror: Mirror
    cache: BlobCache
    usage: Usage
    router: Router
    predictor: Predictor


def _adders(parts: _Parts) -> Adders:
    """Every servicer, by its service's full name."""
    settings, knowledge, mirror = parts.settings, parts.knowledge, parts.mirror
    auth = Authenticator(mirror, settings.max_staleness_s)
    admission = Admission(parts.cache, settings.max_upload_bytes)
    memory = ByteBudget(settings.upload_memory_bytes)
    pace = Pace(settings.upload_idle_s, settings.upload_min_bytes_per_s)
    arrivals = Arrivals(knowledge, mirror)
    uploads = VersionUploads(
        knowledge, mirror, admission, arrivals, settings.max_upload_bytes, memory
    )
    bases = BaseUploads(
        knowledge, mirror, settings.max_base_bytes, settings.max_upload_bytes, memory
    )
    nodes = DomainUploads(
        knowledge, mirror, admission, arrivals, parts.cache, settings.max_upload_bytes, memory
    )
    inference = InferenceServicer(auth, parts.predictor, settings.stream_window)
    tenants = TenantServicer(auth, knowledge, mirror, parts.usage, parts.router)
    models = ModelServicer(auth, knowledge, mirror, bases, uploads, pace)
    domains = DomainServicer(auth, knowledge, mirror, nodes, pace)
    oip = OpenInferenceServicer(auth, mirror, parts.router, parts.predictor)
    return {
        "hmi.inference.v1.InferenceService": partial(
            add_InferenceServiceServicer_to_server, inference
        ),
        "hmi.admin.v1.TenantService": partial(add_TenantServiceServicer_to_server, tenants),
        "hmi.admin.v1.ModelService": partial(add_ModelServiceServicer_to_server, models),
        "hmi.admin.v1.DomainService": partial(add_DomainServiceServicer_to_server, domains),
        "inference.GRPCInferenceService": partial(_add_open_inference, oip),
    }


def _add_open_inference(servicer: OpenInferenceServicer, server: grpc.aio.Server) -> None:
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    server.add_generic_rpc_handlers((Extensions(),))


@asynccontextmanager
async def open_app(settings: GatewaySettings, gateway_id: str) -> AsyncIterator[App]:
    """Build the gateway and wait for the store's first snapshot."""
    token = settings.service_token.get_secret_value()
    async with open_channel(settings.knowledge_address, token) as channel:
        knowledge: KnowledgeServiceAsyncStub = KnowledgeServiceStub(channel)
        mirror = Mirror(time.monotonic)
        following = asyncio.create_task(follow(mirror, knowledge))
        blobs = Blobs(knowledge)
        cache = await asyncio.to_thread(
            BlobCache, settings.cache_dir, blobs, max_bytes=settings.cache_bytes
        )
        tokenization = Tokenization(cache, settings.tokenizer_threads)
        usage = Usage()
        router = Router(settings, mirror, usage, gateway_id)
        leases = QuotaLeases(knowledge, mirror.num_gateways, time.monotonic)
        try:
            await mirror.ready()
            limits = Limits(settings, leases)
            predictor = Predictor(settings, mirror, limits, tokenization, router, usage)
            parts = _Parts(settings, knowledge, mirror, cache, usage, router, predictor)
            # Before they are asked for, and before the store may be away.
            mirror.on_change(lambda: tokenization.keep(mirror.state.bases.values()))
            tokenization.keep(mirror.state.bases.values())
            async with leases.running():
                yield App(_adders(parts), knowledge, mirror, router)
        finally:
            following.cancel()
            await router.close()
            tokenization.close()
            await asyncio.gather(following, return_exceptions=True)
