"""Starts an executor: settings, parts, server. `python -m services.executor`."""

from __future__ import annotations

import asyncio
import logging
import sys
import uuid
from asyncio import TaskGroup
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING

import torch

from hmi.executor.v1.executor_pb2_grpc import add_ExecutorServiceServicer_to_server
from hmi.knowledge.v1.knowledge_pb2 import MEMBER_KIND_EXECUTOR
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from services.common.errors import HmiError
from services.common.follow import follow
from services.common.interceptor import RequestInterceptor, ServiceTokenInterceptor
from services.common.knowledge import BlobCache, Blobs, open_channel
from services.common.logs import configure_logging
from services.common.registration import Registration
from services.common.server import run, serve, stopped
from services.executor.bases import Bases
from services.executor.blobs import BlobFiles
from services.executor.config import ExecutorSettings
from services.executor.device import pick_device, pick_limits, pick_workers
from services.executor.failpoints import arm
from services.executor.follow import Follower
from services.executor.loading import Loader
from services.executor.materialise import Worker
from services.executor.observe import Counter, Shipper
from services.executor.service import Executor, Options
from services.executor.tables import keep_near

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

SERVICE = "hmi.executor.v1.ExecutorService"


def _options(settings: ExecutorSettings) -> Options:
    device = pick_device(settings.device)
    return Options(
        executor_id=f"executor-{uuid.uuid4().hex[:12]}",
        limits=pick_limits(settings.max_batch_tokens, settings.max_batch_rows, device),
        credit_batches=settings.credit_batches,
        max_in_flight=1 if device.type == "cpu" else 2,
        num_workers=pick_workers(settings.num_workers, device),
        drain_s=settings.drain_s,
        reach=arm(settings.failpoints),
    )


class Process:
    """This process's parts, each made of those before it."""

    def __init__(self, settings: ExecutorSettings, stub: KnowledgeServiceAsyncStub) -> None:
        options = _options(settings)
        self.failed = asyncio.Event()
        self.files = BlobFiles(
            BlobCache(settings.cache_dir / "blobs", Blobs(stub), max_bytes=settings.cache_bytes),
            settings.blob_dir,
        )
        self.counter = Counter()
        self.executor = Executor(options, self.failed.set, self.counter.observe)
        self.shipper = Shipper(self.counter, stub, options.executor_id)
        self.worker = Worker(
            stub,
            options.executor_id,
            self.executor.bases,
            self.files,
            directory=settings.cache_dir / "work",
            run_aside=self.executor.dispatcher.run_aside,
            reach=options.reach,
        )
        self.follower = Follower()
        self.registration = Registration(
            stub,
            member_id=options.executor_id,
            kind=MEMBER_KIND_EXECUTOR,
            base_digests=lambda: list(self.executor.bases),
            held_blobs=lambda: (
                self.bases.held_blobs | self.executor.held_blobs | self.worker.held_blobs
            ),
        )
        self.bases = Bases(
            self.executor,
            self.follower,
            self.files,
            directory=settings.cache_dir / "bases",
            load=Loader(settings, self.files, self.executor.dispatcher.wake, options.reach).load,
            announce=self.registration.announce,
        )


async def main(settings: ExecutorSettings) -> None:
    """Serve until a signal comes or the parent is gone, then drain and stop.

    Raises:
        ExceptionGroup: Of what kept it from serving: HmiError (no base of the store can be
            served), OSError (the port), RuntimeError (the engine failed).
    """
    serving = asyncio.create_task(_serve(settings))
    stop = asyncio.create_task(stopped(settings))
    await asyncio.wait({serving, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    serving.cancel()
    with suppress(asyncio.CancelledError):
        await serving


async def _serve(settings: ExecutorSettings) -> None:
    """Serve until cancelled; what is begun here is ended in reverse."""
    token = settings.service_token.get_secret_value()
    interceptors = [RequestInterceptor("executor"), ServiceTokenInterceptor(token)]
    async with open_channel(settings.knowledge_address, token) as channel, TaskGroup() as group:
        stub: KnowledgeServiceAsyncStub = KnowledgeServiceStub(channel)
        process = Process(settings, stub)
        group.create_task(follow(process.follower, stub))
        await process.bases.start()
        adders = {
            SERVICE: partial(add_ExecutorServiceServicer_to_server, process.executor.servicer)
        }
        serving = serve(settings, adders=adders, interceptors=interceptors)
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(serving)
            # Ends after the engine, whose last lookups are then shipped too.
            await stack.enter_async_context(process.shipper.held())
            await stack.enter_async_context(process.executor)
            address = f"{settings.host}:{server.port}"
            reached_at = settings.advertise_address or address
            await stack.enter_async_context(process.registration.held(reached_at))
            stack.push_async_callback(server.set_serving, False)
            group.create_task(process.bases.run())
            group.create_task(keep_near(process.executor.bases))
            # Ended before the engine is, which computes for it.
            stack.callback(group.create_task(process.worker.run()).cancel)
            print(f"ready: {address}", flush=True)
            await process.failed.wait()
            raise RuntimeError("the engine failed; see the log")


if __name__ == "__main__":
    try:
        executor_settings = ExecutorSettings()
        configure_logging("executor", executor_settings.log_level)
        if executor_settings.num_threads:
            torch.set_num_threads(executor_settings.num_threads)
        run(main(executor_settings))
    except* (HmiError, OSError, ValueError, RuntimeError) as errors:
        logger.debug("executor stopped", exc_info=True)
        sys.exit("executor: " + "; ".join(str(error) for error in errors.exceptions))
