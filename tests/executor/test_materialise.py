"""Materialising: from leased work to completed segments, through faults of store, disk, lease."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from torch import Tensor

from hmi.knowledge.v1 import domain_pb2 as pb
from services.common import ngrams
from services.common.ngram_counts import keys_to_bytes
from services.executor.engine.batching import Batcher, Limits
from services.executor.engine.engine import Engine
from services.executor.engine.loop import EngineLoop
from services.executor.engine.tables import RowEncoder
from services.executor.materialise import Worker, worker
from services.executor.plot.manifest import SegmentRef
from services.executor.plot.segment import Segment, SegmentKind
from tests.executor.split_world import World, keys_of, random_texts, split_world

TEXTS = random_texts(30)


class SlowEncoder:
    """A local encoder that waits for permission, piece by piece."""

    def __init__(self, encoder: RowEncoder) -> None:
        self.form = encoder.form
        self.num_slots = encoder.num_slots
        self.hidden_size = encoder.hidden_size
        self.dtype = encoder.dtype
        self._encoder = encoder
        self.begun, self.go_on = threading.Event(), threading.Event()

    def rows(self, keys: Tensor) -> Tensor:
        self.begun.set()
        assert self.go_on.wait(10)
        return self._encoder.rows(keys)


@dataclass
class Job:
    """A worker at work, and what it reached."""

    world: World
    worker: Worker
    task: asyncio.Task[None]
    reached: list[str] = field(default_factory=list)

    @property
    def directory(self) -> Path:
        return self.world.directory / "work"

    def offer(self, order: int = 3, work_id: str = "work-1", lease_ms: int = 60_000) -> pb.Work:
        """Give the store work for all n-grams of an order."""
        every = keys_of(TEXTS)
        keys = every[ngrams.order_of(every) == order]
        proto = self.world.protos["hminilm"]
        encoder = (self.world.directory / "hminilm" / "local_encoder.safetensors").read_bytes()
        work = pb.Work(
            work_id=work_id,
            base_digest=proto.digest,
            path="news",
            encoder_sha256=self.world.store.put(encoder),
            order=order,
            keys_sha256=self.world.store.put(keys_to_bytes(keys)),
            num_entries=len(keys),
            expected_version=4,
            lease_token=f"token of {work_id}",
            lease_ms=lease_ms,
        )
        self.world.store.work.append(work)
        return work

    async def completed(self, number: int = 1) -> pb.CompleteWorkRequest:
        """The last completion, once there are so many."""
        store = self.world.store
        await store.wait_for(lambda: len(store.completed) >= number)
        return store.completed[-1]

    def slow(self) -> SlowEncoder:
        """Let the base's encoder be slow."""
        digest = self.world.protos["hminilm"].digest
        base = self.world.bases[digest]
        assert base.split is not None
        load = base.split.load_encoder
        slow = SlowEncoder(load(self.world.protos["hminilm"].split.encoder_sha256))
        self.world.bases[digest] = replace(
            base, split=replace(base.split, load_encoder=lambda _sha256: slow)
        )
        return slow

    def rows(self, request: pb.CompleteWorkRequest, work: pb.Work) -> tuple[np.ndarray, np.ndarray]:
        """Keys and values of a completion's segments, each verified."""
        kind = SegmentKind(work.base_digest, work.encoder_sha256, "centre", work.order)
        keys, values = [], []
        for told in request.segments:
            path = self.world.directory / told.sha256
            path.write_bytes(self.world.store.blobs[told.sha256])
            ref = SegmentRef(told.sha256, told.order, told.num_entries, told.size_bytes, False)
            segment = Segment.open(path, ref, kind)
            assert segment.values is not None
            assert segment.dtype == "float32"
            keys.append(segment.keys)
            values.append(segment.values)
        return np.concatenate(keys), np.concatenate(values)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for pause in ("POLL_S", "RETRY_S", "PAUSE_S"):
        monkeypatch.setattr(worker, pause, 0.02)
    monkeypatch.setattr(worker, "SEGMENT_BYTES", 10_000)  # a hundred rows or so


@asynccontextmanager
async def working(directory: Path) -> AsyncIterator[Job]:
    """A worker for a split base, its pieces run by a real engine's thread."""
    async with split_world(directory) as world:
        await world.load("hminilm")
        loop = EngineLoop(
            Engine(world.bases), Batcher(world.bases, Limits(256, 8)), lambda _events: None
        )
        loop.start()
        reached: list[str] = []
        made = Worker(
            world.stub,
            "executor-1",
            world.bases,
            world.files,
            directory=world.directory / "work",
            run_aside=loop.run_aside,
            reach=lambda point, _num: reached.append(point),
        )
        task = asyncio.create_task(made.run())
        yield Job(world, made, task, reached)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not list((world.directory / "work").glob("*"))
        await asyncio.to_thread(loop.stop)


@pytest.fixture
async def job(tmp_path: Path) -> AsyncIterator[Job]:
    async with working(tmp_path) as job:
        yield job


@pytest.mark.parametrize("order", [1, 2, 3])
async def test_work_becomes_segments_of_the_encoders_rows(job: Job, order: int) -> None:
    work = job.offer(order)
    request = await job.completed()
    assert (request.work_id, request.lease_token) == (work.work_id, work.lease_token)
    assert request.expected_version == 4
    assert sum(segment.num_entries for segment in request.segments) == work.num_entries
    assert (len(request.segments) > 1) == (order > 1)
    keys, values = job.rows(request, work)
    every = keys_of(TEXTS)
    np.testing.assert_array_equal(keys, every[ngrams.order_of(every) == order])
    expected = job.world.local().rows(torch.from_numpy(keys)).numpy()
    np.testing.assert_array_equal(values, expected)


async def test_every_step_is_a_failpoint(job: Job) -> None:
    job.offer(1)
    await job.completed()
    await until(lambda: len(job.reached) == 5)
    assert job.reached == [
        "work_leased",
        "rows_computed",
        "segment_written",
        "before_complete",
        "after_complete",
    ]


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not is_so():  # noqa: ASYNC110  it changes on other threads
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("rpc", ["LeaseWork", "WriteBlob", "CompleteWork"])
async def test_a_store_that_goes_away_and_comes_back_gets_the_work(job: Job, rpc: str) -> None:
    job.world.store.fail(rpc, *[grpc.StatusCode.UNAVAILABLE] * 3)
    work = job.offer()
    request = await job.completed()
    assert len(job.rows(request, work)[0]) == work.num_entries


async def test_a_completion_whose_answer_is_lost_is_told_again(job: Job) -> None:
    job.world.store.fail("CompleteWork", grpc.StatusCode.UNAVAILABLE, is_heard=True)
    job.offer(1)
    await job.completed(2)
    first, second = job.world.store.completed
    assert first == second


async def test_the_lease_is_renewed_while_rows_are_computed(job: Job) -> None:
    slow = job.slow()
    work = job.offer(lease_ms=90)
    await until(lambda: job.world.store.renewals.count(work.work_id) >= 3)
    assert job.worker.held_blobs >= {work.keys_sha256, work.encoder_sha256}
    slow.go_on.set()
    await job.completed()
    await until(lambda: not job.worker.held_blobs)


@pytest.mark.parametrize("is_another", [False, True])
async def test_work_whose_lease_is_lost_is_left_and_the_next_is_done(
    job: Job, is_another: bool
) -> None:
    slow = job.slow()
    lost = job.offer(work_id="lost", lease_ms=90)
    await until(slow.begun.is_set)
    leases = job.world.store.leases
    if is_another:
        leases["lost"] = pb.Work(work_id="lost", lease_token="another's")
    else:
        del leases["lost"]
    job.world.store.renewals.clear()
    await until(lambda: job.world.store.renewals)
    slow.go_on.set()
    job.offer(1, work_id="next")
    request = await job.completed()
    assert request.work_id == "next"
    assert lost.work_id not in {done.work_id for done in job.world.store.completed}


@pytest.mark.parametrize(
    ("rpc", "code"),
    [
        ("WriteBlob", grpc.StatusCode.RESOURCE_EXHAUSTED),
        ("CompleteWork", grpc.StatusCode.ABORTED),
        ("CompleteWork", grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_refused_work_is_left_to_its_lease_and_the_next_is_done(
    job: Job, rpc: str, code: grpc.StatusCode
) -> None:
    job.world.store.fail(rpc, code)
    job.offer(1, work_id="refused")
    await until(lambda: not job.world.store.failures[rpc])
    job.offer(1, work_id="next")
    assert (await job.completed()).work_id == "next"


async def test_a_disk_that_takes_nothing_leaves_nothing_and_the_next_work_is_done(job: Job) -> None:
    job.directory.write_bytes(b"")  # no directory can be made of it
    job.offer(1, work_id="refused")
    await until(lambda: not job.world.store.work)
    await asyncio.sleep(0.1)
    job.directory.unlink()
    job.offer(1, work_id="next")
    assert (await job.completed()).work_id == "next"


async def test_work_that_names_what_is_not_there_or_not_so_is_left(job: Job) -> None:
    work = job.offer(1, work_id="gone")
    job.world.store.work.clear()
    gone, foreign, no_keys = pb.Work(), pb.Work(), pb.Work()
    for wrong in (gone, foreign, no_keys):
        wrong.CopyFrom(work)
    gone.keys_sha256 = "ab" * 32
    foreign.base_digest = "cd" * 32
    no_keys.keys_sha256 = job.world.store.put(b"no keys")
    job.world.store.work.extend([gone, foreign, no_keys])
    job.offer(1, work_id="next")
    assert (await job.completed()).work_id == "next"
    assert len(job.world.store.completed) == 1


async def test_stopping_in_the_middle_ends_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    async with working(tmp_path) as job:
        slow = job.slow()
        job.offer()
        await until(slow.begun.is_set)
        assert list(job.directory.glob("*/*"))
        job.task.cancel()
        threading.Timer(0.2, slow.go_on.set).start()
        async with asyncio.timeout(2):
            await asyncio.gather(job.task, return_exceptions=True)
        assert not list(job.directory.glob("*"))
        assert not job.world.store.completed


async def test_an_executor_without_split_bases_asks_for_no_work(tmp_path: Path) -> None:
    async with working(tmp_path) as job:
        job.world.bases.clear()
        await asyncio.sleep(0.1)
        job.offer()
        await asyncio.sleep(0.1)
        assert job.world.store.work
