"""Memory of uploads: what is announced, idle or not taken away keeps nobody else waiting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from hmi.admin.v1 import model_pb2 as pb
from hmi.admin.v1 import resources_pb2
from hmi.admin.v1.model_pb2_grpc import ModelServiceStub
from services.common.errors import DeadlineExceeded, from_rpc_error
from services.gateway import bulk
from services.gateway.budget import ByteBudget, Holding
from services.gateway.bulk import BulkUpload
from services.gateway.streams import Pace
from services.gateway.uploads import Checked
from tests.gateway.blobs import lora_blob, sha256
from tests.gateway.conftest import Stack, Store, open_stack, unique, until
from tests.gateway.test_predict import expect
from tests.gateway.test_uploads import bulk_parts, header, held, upload

IDLE_S = 1.5
LARGEST = 64 << 10


@pytest.fixture
async def stack(shared_store: Store, tmp_path: Path) -> AsyncIterator[Stack]:
    """A gateway with room for four of its largest uploads."""
    async with open_stack(
        shared_store, tmp_path / "cache", upload_idle_s=IDLE_S, max_upload_bytes=LARGEST,
        upload_memory_bytes=4 * LARGEST,
    ) as opened:  # fmt: skip
        yield opened


@pytest.fixture
async def tenant(stack: Stack) -> str:
    name = unique("acme")
    await stack.add_tenant(name)
    return name


async def test_idle_uploads_block_nobody_and_are_ended(stack: Stack, tenant: str) -> None:
    """Four that announce all the memory there is, and send a byte."""
    models: Any = ModelServiceStub(stack.channel)
    idle = [models.UploadVersion(metadata=stack.metadata(tenant)) for _ in range(4)]
    for number, call in enumerate(idle):
        announced = header(b"", model="idle", sha256=sha256(b"%d" % number), size_bytes=LARGEST)
        await call.write(pb.UploadVersionRequest(header=announced))
        await call.write(pb.UploadVersionRequest(chunk=b"x"))
    blob = lora_blob(400)
    async with asyncio.timeout(IDLE_S * 0.8):
        version = (await upload(stack, tenant, header(blob, model="busy"), blob)).version
    assert version.digest == sha256(blob)
    for call in idle:
        await expect(grpc.StatusCode.DEADLINE_EXCEEDED, call)


async def test_idle_bulk_uploads_block_nobody_and_are_ended(stack: Stack, tenant: str) -> None:
    models: Any = ModelServiceStub(stack.channel)
    idle = [models.UploadVersions(metadata=stack.metadata(tenant)) for _ in range(4)]
    for number, call in enumerate(idle):
        announced = header(b"", model="idle", sha256=sha256(b"%d" % number), size_bytes=LARGEST)
        await call.write(pb.UploadVersionsRequest(header=announced))
        await call.write(pb.UploadVersionsRequest(chunk=b"x"))
    blob = lora_blob(401)
    async with asyncio.timeout(IDLE_S * 0.8):
        call = models.UploadVersions(
            bulk_parts([(header(blob, model="busy"), blob)]), metadata=stack.metadata(tenant)
        )
        answers = [answer async for answer in call]
    assert [answer.version.digest for answer in answers] == [sha256(blob)]
    for call in idle:
        await expect(grpc.StatusCode.DEADLINE_EXCEEDED, call.read())


async def drip(call: Any, request: Any, num_bytes: int) -> None:
    """A byte every third of what an upload may wait for one, until the call ends."""
    for _ in range(num_bytes):
        if call.done():
            return
        await call.write(request(chunk=b"x"))
        await asyncio.sleep(IDLE_S / 3)


async def test_an_upload_that_drips_is_ended_and_resumed_from_what_came(
    stack: Stack, tenant: str
) -> None:
    models: Any = ModelServiceStub(stack.channel)
    blob = lora_blob(403)
    half = len(blob) // 2
    call = models.UploadVersion(metadata=stack.metadata(tenant))
    await call.write(pb.UploadVersionRequest(header=header(blob)))
    await call.write(pb.UploadVersionRequest(chunk=blob[:half]))
    async with asyncio.timeout(IDLE_S * 3):
        for byte in blob[half : half + 12]:
            if call.done():
                break
            await call.write(pb.UploadVersionRequest(chunk=bytes([byte])))
            await asyncio.sleep(IDLE_S / 3)
        error = await expect(grpc.StatusCode.DEADLINE_EXCEEDED, call)
    assert from_rpc_error(error).reason == "UPLOAD_TOO_SLOW"
    assert sha256(blob) in (error.details() or "")
    offset = await held(stack, tenant, blob)
    assert half < offset < half + 12
    rest = upload(stack, tenant, header(blob, offset=offset), blob[offset:])
    assert (await rest).version.digest == sha256(blob)


async def test_a_resumed_upload_that_drips_is_ended_and_resumed_again(
    stack: Stack, tenant: str
) -> None:
    models: Any = ModelServiceStub(stack.channel)
    blob = lora_blob(404)
    await expect(grpc.StatusCode.DATA_LOSS, upload(stack, tenant, header(blob), blob[:1_000]))
    call = models.UploadVersion(metadata=stack.metadata(tenant))
    await call.write(pb.UploadVersionRequest(header=header(blob, offset=1_000)))
    await call.write(pb.UploadVersionRequest(chunk=blob[1_000:3_000]))
    async with asyncio.timeout(IDLE_S * 2):
        await expect(grpc.StatusCode.DEADLINE_EXCEEDED, call)
    assert await held(stack, tenant, blob) == 3_000
    rest = upload(stack, tenant, header(blob, offset=3_000), blob[3_000:])
    assert (await rest).version.digest == sha256(blob)


async def test_an_upload_that_drips_in_a_bulk_ends_it(stack: Stack, tenant: str) -> None:
    models: Any = ModelServiceStub(stack.channel)
    call = models.UploadVersions(metadata=stack.metadata(tenant))
    announced = header(b"", model="slow", sha256=sha256(b"slow"), size_bytes=LARGEST)
    await call.write(pb.UploadVersionsRequest(header=announced))
    dripping = asyncio.create_task(drip(call, pb.UploadVersionsRequest, 12))
    async with asyncio.timeout(IDLE_S * 3):
        error = await expect(grpc.StatusCode.DEADLINE_EXCEEDED, call.read())
    assert sha256(b"slow") in (error.details() or "")
    dripping.cancel()
    await asyncio.gather(dripping, return_exceptions=True)


async def test_what_a_gone_caller_sent_is_held_until_the_store_has_it(
    stack: Stack, tenant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_bytes: list[int] = []
    give_back = Holding.release

    def release(holding: Holding) -> None:
        held_bytes.append(holding.size_bytes)
        give_back(holding)

    monkeypatch.setattr(Holding, "release", release)
    models: Any = ModelServiceStub(stack.channel)
    blob = lora_blob(402)
    half = len(blob) // 2
    call = models.UploadVersion(metadata=stack.metadata(tenant))
    await call.write(pb.UploadVersionRequest(header=header(blob)))
    await call.write(pb.UploadVersionRequest(chunk=blob[:half]))
    await asyncio.sleep(0.1)  # it arrives
    call.cancel()
    await until(lambda: half in held_bytes)
    assert await held(stack, tenant, blob) == half
    assert held_bytes == [0, half]


async def test_many_whole_uploads_at_once_all_come_through(stack: Stack, tenant: str) -> None:
    """Together far more than the memory; each waits with what it has in hand."""
    blobs = [lora_blob(500 + number) for number in range(4 * 4 * LARGEST // len(lora_blob(500)))]
    answers = await asyncio.gather(
        *(upload(stack, tenant, header(b, model=f"m{n}"), b) for n, b in enumerate(blobs))
    )
    assert [answer.version.digest for answer in answers] == [sha256(blob) for blob in blobs]


class SlowStore:
    """Uploads whose commit waits until it is let go."""

    def __init__(self) -> None:
        self.memory = ByteBudget(1 << 30)
        self.may_commit = asyncio.Event()
        self.group_bytes: list[int] = []

    def check_header(self, *given: Any) -> Any:
        return object()

    async def checked(self, tenant: str, given: pb.UploadHeader, blob: bytes, base: Any) -> Checked:
        new: Any = None
        return Checked(new, blob)

    async def commit(self, group: Sequence[Checked]) -> list[resources_pb2.Version]:
        self.group_bytes.append(sum(len(checked.blob) for checked in group))
        await self.may_commit.wait()
        return [resources_pb2.Version(number=1) for _ in group]


def slow_bulk(store: SlowStore, idle_s: float = 60.0) -> BulkUpload:
    uploads: Any = store
    return BulkUpload(uploads, "acme", lambda: None, Pace(idle_s, 0))


async def parts_of(num: int, size_bytes: int) -> AsyncIterator[pb.UploadVersionsRequest]:
    for number in range(num):
        blob = bytes([number % 256]) * size_bytes
        for part in bulk_parts([(header(blob), blob)]):
            yield part


async def test_what_a_bulk_upload_stages_is_bounded_by_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk, "STAGED_BYTES", 20_000)
    store = SlowStore()
    most = 0

    async def watch() -> None:
        nonlocal most
        await until(lambda: store.memory.held_bytes >= 20_000)
        most = store.memory.held_bytes
        for _ in range(100):
            await asyncio.sleep(0)
            most = max(most, store.memory.held_bytes)
        store.may_commit.set()

    watching = asyncio.create_task(watch())
    outcomes = [outcome async for outcome in slow_bulk(store).run(parts_of(100, 5_000))]
    await watching
    assert sorted(position for position, _ in outcomes) == list(range(100))
    assert most <= 25_000
    assert max(store.group_bytes) <= 25_000
    assert store.memory.held_bytes == 0


async def test_one_upload_larger_than_what_may_be_staged_still_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bulk, "STAGED_BYTES", 1_000)
    store = SlowStore()
    store.may_commit.set()
    outcomes = [outcome async for outcome in slow_bulk(store).run(parts_of(3, 50_000))]
    assert len(outcomes) == 3


async def test_a_sender_that_takes_no_answers_holds_no_memory() -> None:
    store = SlowStore()
    store.may_commit.set()
    async with aclosing(slow_bulk(store, idle_s=0.05).run(parts_of(500, 1_000))) as outcomes:
        await anext(outcomes)
        store.may_commit.clear()
        await until(lambda: store.memory.held_bytes == 0)
        with pytest.raises(DeadlineExceeded):
            await anext(outcomes)
