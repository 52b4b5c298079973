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

from hmi.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common.knowledge import BlobCache, Blobs, open_channel
from services.gateway.auth import Authenticator
from services.gateway.config import GatewaySettings
from services.gateway.limits import Limits
from services.gateway.mirror import Mirror
from services.gateway.predictor import Predictor
from services.gateway.router import Router
from services.gateway.servicers.inference import InferenceServicer
from services.gateway.tokenization import Tokenization
from services.gateway.usage import Usage
from services.gateway.watch import follow

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


@asynccontextmanager
async def open_app(settings: GatewaySettings, gateway_id: str) -> AsyncIterator[App]:
    """Build the gateway and wait for the store's first snapshot."""
    token = settings.service_token.get_secret_value()
    async with open_channel(settings.knowledge_address, token) as channel:
        knowledge: KnowledgeServiceAsyncStub = KnowledgeServiceStub(channel)
        mirror = Mirror(time.monotonic)
        following = asyncio.create_task(follow(mirror, knowledge))
        blobs = Blobs(knowledge)
        cache = await asyncio.to_thread(BlobCache, settings.cache_dir, blobs)
        tokenization = Tokenization(cache, settings.tokenizer_threads)
        usage = Usage()
        router = Router(settings, mirror, usage, gateway_id)
        try:
            await mirror.ready()
            limits = Limits(settings, mirror.num_gateways, time.monotonic)
            auth = Authenticator(mirror, settings.max_staleness_s)
            predictor = Predictor(settings, mirror, limits, tokenization, router, usage)
            inference = InferenceServicer(auth, predictor, settings.stream_window)
            adders: Adders = {
                "hmi.inference.v1.InferenceService": partial(
                    add_InferenceServiceServicer_to_server, inference
                ),
            }
            yield App(adders, knowledge, mirror, router)
        finally:
            following.cancel()
            await router.close()
            tokenization.close()
            await asyncio.gather(following, return_exceptions=True)
