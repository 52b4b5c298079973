"""Leases work of the knowledge store, one piece at a time, and brings it to its end.

Knows leases and the steps from keys to completed segments; does not know why a node should hold
these rows. Work may be broken off anywhere or done twice: equal rows make equal blobs, and a lease
that is not renewed goes to another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import grpc
import grpc.aio
from prometheus_client import Counter

from hmi.admin.v1.resources_pb2 import Segment
from hmi.knowledge.v1 import domain_pb2 as pb
from services.common.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    HmiError,
    Unavailable,
    from_rpc_error,
)
from services.common.knowledge import Blobs
from services.common.ngram_counts import keys_from_bytes
from services.executor.blobs import BlobFiles
from services.executor.device import dtype_name
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.tables import LoadedSplit
from services.executor.failpoints import Reach, off
from services.executor.materialise.rows import Rows, RunAside
from services.executor.plot.manifest import SegmentRef
from services.executor.plot.segment import SegmentKind, WrittenSegment, write_segments
from services.executor.scratch import scratch_directory

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

logger = logging.getLogger(__name__)

POLL_S = 1.0
RETRY_S = 0.5
PAUSE_S = 5.0  # after work that failed here: another executor, or a freed disk, may do better
ANSWER_S = 10.0
# A segment is held in memory while it is uploaded.
SEGMENT_BYTES = 64 << 20

_LOST = (
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
)

_Answer = TypeVar("_Answer")

failures_total = Counter(
    "hmi_work_failures_total", "Pieces of materialisation that failed here and are tried again."
)


class Worker:
    """Does work for as long as `run` runs.

    Args:
        executor_id: This executor.
        bases: The bases served, by digest. May change.
        files: Where keys and encoders come from.
        directory: Where segments lie until they are uploaded; created if missing.
        run_aside: Runs a piece on the engine's thread.
        reach: Failpoints.
    """

    def __init__(
        self,
        stub: KnowledgeServiceAsyncStub,
        executor_id: str,
        bases: Mapping[str, LoadedBase],
        files: BlobFiles,
        *,
        directory: Path,
        run_aside: RunAside,
        reach: Reach = off,
    ) -> None:
        self._stub = stub
        self._blobs = Blobs(stub)
        self._executor_id = executor_id
        self._bases = bases
        self._files = files
        self._directory = directory
        self._run_aside = run_aside
        self._reach = reach
        self._held: set[str] = set()

    @property
    def held_blobs(self) -> frozenset[str]:
        """Blobs of the work in hand: no others may name the new segments yet."""
        return frozenset(self._held)

    async def run(self) -> None:
        """Do what work there is, for ever."""
        while True:
            pause_s = POLL_S
            try:
                work = await self._lease()
                if work is not None:
                    await self._do(work)
                    pause_s = 0.0
            except (Unavailable, DeadlineExceeded) as error:
                logger.debug("no work while the store is away", extra={"error": error.message})
            except HmiError as error:
                logger.warning("work failed", extra={"error": error.message})
                failures_total.inc()
                pause_s = PAUSE_S
            except Exception:  # a defect, the disk or the device: this work's lease lapses
                logger.exception("work failed")
                failures_total.inc()
                pause_s = PAUSE_S
            await asyncio.sleep(pause_s)

    async def _lease(self, work_id: str = "") -> pb.Work | None:
        """Any work for the split bases served here, or the same again.

        Raises:
            HmiError: The store's, or that it cannot be reached.
        """
        digests = [digest for digest, base in self._bases.items() if base.split is not None]
        if not digests:
            return None
        request = pb.LeaseWorkRequest(
            executor_id=self._executor_id, base_digests=digests, work_id=work_id
        )
        try:
            response = await self._stub.LeaseWork(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return response.work if response.HasField("work") else None

    async def _do(self, work: pb.Work) -> None:
        """Materialise until it is completed or the lease is lost."""
        self._reach("work_leased", 1)
        facts = {"path": work.path, "order": work.order, "num_entries": work.num_entries}
        logger.info("materialising", extra=facts)
        job = asyncio.create_task(self._materialise(work))
        lease = asyncio.create_task(self._keep(work))
        try:
            await asyncio.wait({job, lease}, return_when=asyncio.FIRST_COMPLETED)
            if job.done():
                job.result()
            else:
                lease.result()
                logger.info("the work went to another, or is no longer wanted", extra=facts)
        finally:
            job.cancel()
            lease.cancel()
            await asyncio.gather(job, lease, return_exceptions=True)
            self._held.clear()

    async def _keep(self, work: pb.Work) -> None:
        """Renew the lease until it is lost; a store that is away may come back in time."""
        while True:
            await asyncio.sleep(work.lease_ms / 3000)
            try:
                renewed = await self._lease(work.work_id)
            except HmiError as error:
                if error.code in _LOST:
                    return
                continue
            if renewed is None or renewed.lease_token != work.lease_token:
                return

    async def _materialise(self, work: pb.Work) -> None:
        """From keys to completion.

        Raises:
            HmiError: The store's refusal, or a blob that cannot be used.
            OSError: Of this machine's disk.
        """
        base = self._bases.get(work.base_digest)
        if base is None or base.split is None:
            raise FailedPrecondition(f"base {work.base_digest} is not served here")
        self._held |= {work.keys_sha256, work.encoder_sha256}
        with scratch_directory(self._directory) as directory:
            segments = [
                await self._upload(written)
                async for written in self._written(work, base.split, directory)
            ]
        self._reach("before_complete", 1)
        await self._complete(work, segments)
        self._reach("after_complete", 1)

    async def _written(
        self, work: pb.Work, split: LoadedSplit, directory: Path
    ) -> AsyncIterator[WrittenSegment]:
        """The work's rows in files, one after the other."""
        keys_path = await self._files.path(work.keys_sha256)
        keys = await asyncio.to_thread(lambda: keys_from_bytes(keys_path.read_bytes()))
        encoder = await asyncio.to_thread(split.load_encoder, work.encoder_sha256)
        rows = Rows(encoder, self._run_aside)
        kind = SegmentKind(work.base_digest, work.encoder_sha256, encoder.form, work.order)
        writing = write_segments(
            directory,
            keys,
            kind,
            rows,
            row_shape=rows.shape,
            dtype=dtype_name(encoder.dtype),
            max_bytes=SEGMENT_BYTES,
        )
        while (written := await _to_its_end(lambda: next(writing, None), rows.stop)) is not None:
            yield written

    async def _upload(self, written: WrittenSegment) -> SegmentRef:
        self._reach("rows_computed", 1)
        data = await asyncio.to_thread(written.path.read_bytes)
        written.path.unlink()
        self._held.add(written.ref.sha256)
        await _until_answered(lambda: self._blobs.write(data, owner=self._executor_id))
        self._reach("segment_written", 1)
        return written.ref

    async def _complete(self, work: pb.Work, segments: Sequence[SegmentRef]) -> None:
        request = pb.CompleteWorkRequest(
            work_id=work.work_id,
            lease_token=work.lease_token,
            expected_version=work.expected_version,
            segments=[Segment(**asdict(segment)) for segment in segments],
        )
        response = await _until_answered(lambda: self._call_complete(request))
        facts = {"path": work.path, "order": work.order, "is_committed": response.is_committed}
        logger.info("materialised", extra=facts)

    async def _call_complete(self, request: pb.CompleteWorkRequest) -> pb.CompleteWorkResponse:
        try:
            return await self._stub.CompleteWork(request, timeout=ANSWER_S)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error


async def _until_answered(call: Callable[[], Awaitable[_Answer]]) -> _Answer:
    """Ask until the store answers; whoever holds the lease's task decides for how long."""
    while True:
        try:
            return await call()
        except (Unavailable, DeadlineExceeded):
            await asyncio.sleep(RETRY_S)


async def _to_its_end(call: Callable[[], _Answer], stop: Callable[[], None]) -> _Answer:
    """Run on a thread. If cancelled, stop it and wait: what it writes to is about to go."""
    running = asyncio.ensure_future(asyncio.to_thread(call))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop()
        await asyncio.gather(running, return_exceptions=True)
        raise
