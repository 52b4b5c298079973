"""The store as a whole: lock, Valkey, metadata, blobs, server; in this order, and back.

Knows what depends on what; does not know signals or the command line.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import grpc.aio

from hmi.knowledge.v1 import knowledge_pb2_grpc
from services.common.interceptor import RequestInterceptor, ServiceTokenInterceptor
from services.common.server import RunningServer, serve
from services.knowledge_store.blobs import BlobDirectory
from services.knowledge_store.collector import Collector
from services.knowledge_store.config import StoreSettings
from services.knowledge_store.domains.forest import Forest
from services.knowledge_store.embedded import EmbeddedValkey
from services.knowledge_store.failpoints import Reach, arm
from services.knowledge_store.frequency import Frequencies
from services.knowledge_store.frequency.snapshots import Snapshots
from services.knowledge_store.leases import Leases
from services.knowledge_store.lock import locked_directory
from services.knowledge_store.metadata import Database
from services.knowledge_store.metadata.bases import Bases
from services.knowledge_store.metadata.models import Models
from services.knowledge_store.metadata.tenants import Tenants
from services.knowledge_store.metadata.versions import Versions
from services.knowledge_store.quotas import Quotas
from services.knowledge_store.servicer import KnowledgeServicer, Parts
from services.knowledge_store.watch import Watches

logger = logging.getLogger(__name__)

_DEFECT_PAUSE_S = 1.0

SERVICE = "hmi.knowledge.v1.KnowledgeService"


@asynccontextmanager
async def running_store(settings: StoreSettings) -> AsyncIterator[RunningServer]:
    """Serve a data directory until the block is left.

    Raises:
        DirectoryInUseError: Another store works on the directory.
        ValkeyError: The embedded Valkey does not start.
        Unavailable: Redis does not answer.
        OSError: The port is taken, or the directory cannot be written.
        ValueError: There is no service token.
    """
    interceptors = [
        RequestInterceptor("knowledge_store"),
        ServiceTokenInterceptor(settings.service_token.get_secret_value()),
    ]
    reach = arm(settings.store_failpoints)
    async with AsyncExitStack() as stack:
        database = await _database(settings, stack)
        blobs = BlobDirectory(settings.data_dir, max_blob_bytes=settings.max_blob_bytes)
        stack.callback(blobs.close)
        await blobs.open()
        snapshots = Snapshots(
            settings.data_dir / "frequencies.npz", interval_s=settings.counts_snapshot_s
        )
        frequencies = Frequencies(
            max_keys=settings.counts_keys, max_total_keys=settings.counts_total_keys,
            state=snapshots.load(),
        )  # fmt: skip
        parts = _parts(settings, database, blobs, frequencies, reach)
        if admin_key := settings.admin_key.get_secret_value():
            await parts.tenants.set_admin_key(hashlib.sha256(admin_key.encode()).digest())
        await parts.leases.load()
        await parts.forest.observing.load()
        collector = Collector(
            database, blobs, parts.leases, interval_s=settings.gc_interval_s,
            grace_s=settings.gc_grace_s, upload_age_s=settings.upload_age_s, reach=reach,
        )  # fmt: skip
        runs = (parts.watches.run, parts.leases.run, parts.forest.updates.run, collector.run)
        for work in (*runs, partial(snapshots.run, frequencies)):
            await stack.enter_async_context(_background(work))

        def add(server: grpc.aio.Server) -> None:
            servicer = KnowledgeServicer(parts)
            knowledge_pb2_grpc.add_KnowledgeServiceServicer_to_server(servicer, server)

        yield await stack.enter_async_context(
            serve(settings, adders={SERVICE: add}, interceptors=interceptors)
        )


async def _database(settings: StoreSettings, stack: AsyncExitStack) -> Database:
    lock = stack.enter_context(locked_directory(settings.data_dir))
    valkey: EmbeddedValkey | None = None
    if not settings.redis_url:
        valkey = EmbeddedValkey(settings.data_dir / "valkey", lock=lock)
        await stack.enter_async_context(valkey)
    database = Database(
        valkey.url if valkey else settings.redis_url,
        timeout_s=settings.redis_timeout_s,
        log_revisions=settings.log_revisions,
    )
    stack.push_async_callback(database.close)
    await database.wait(
        timeout_s=settings.startup_timeout_s, check=valkey.check if valkey else lambda: None
    )
    return database


def _parts(
    settings: StoreSettings,
    database: Database,
    blobs: BlobDirectory,
    frequencies: Frequencies,
    reach: Reach,
) -> Parts:
    ttl_s = settings.request_id_ttl_s
    forest = Forest.build(settings, database, blobs, frequencies, reach)
    return Parts(
        tenants=Tenants(database, request_id_ttl_s=ttl_s),
        bases=Bases(database, blobs.sizes, forest.roots),
        versions=Versions(
            database, blobs.sizes, max_models=settings.max_models, request_id_ttl_s=ttl_s
        ),
        models=Models(database),
        blobs=blobs,
        leases=Leases(database, lease_ms=settings.lease_ms),
        quotas=Quotas(time.monotonic),
        watches=Watches(database, sign_of_life_s=settings.sign_of_life_s),
        forest=forest,
        lease_ms=settings.lease_ms,
    )


@asynccontextmanager
async def _background(work: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run `work`, which has no end of its own, until the block is left."""
    task = asyncio.create_task(_again_and_again(work))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _again_and_again(work: Callable[[], Awaitable[None]]) -> None:
    """A store without leases, watches or collection would look alive: a defect is logged only."""
    while True:
        try:
            await work()
        except Exception:
            logger.critical("a background task broke; it begins again", exc_info=True)
        await asyncio.sleep(_DEFECT_PAUSE_S)
