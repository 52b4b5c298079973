"""The executor as it is deployed: its process, the real store's, real weights, real adapters."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
from google.rpc import code_pb2
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from tokenizers import Tokenizer

from hmi.admin.v1 import resources_pb2
from hmi.executor.v1 import executor_pb2 as pb
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from hmi.pack import pack
from services.common.knowledge import Blobs, open_channel
from services.executor.failpoints import EXIT_STATUS
from tests.executor.children import Child, members, put_base, running, store_child, until_members
from tests.executor.gateway import TOKEN, Gateway
from tests.tiny import Oracle, write_base, write_lora

if TYPE_CHECKING:
    from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceAsyncStub

TEXTS = ["the cat sat on the mat", "news", "a big red house", "the dog ran under a small river"]
LABELS = [2, 3, 5]


@dataclass
class World:
    """A store with a tiny base, and what can be asked of it."""

    directory: Path
    store: Child
    stub: KnowledgeServiceAsyncStub
    base: resources_pb2.Base = field(default_factory=resources_pb2.Base)

    @property
    def blobs(self) -> Path:
        """The store's blob directory."""
        return self.directory / "store" / "blobs"

    async def add_base(self) -> None:
        directory = write_base(self.directory / "base")
        names = ("config.json", "tokenizer.json", "model.safetensors")
        files = {name: (directory / name).read_bytes() for name in names}
        self.base = await put_base(self.stub, "tiny", files, max_tokens=64)

    def adapter(self, seed: int) -> Path:
        """The PEFT directory of the seed's adapter."""
        return write_lora(self.directory / f"lora-{seed}", seed, LABELS[seed % len(LABELS)])

    async def add_version(self, seed: int) -> str:
        """Upload an adapter's blob; its digest."""
        return await Blobs(self.stub).write(pack(self.adapter(seed)))

    def executor(self, **settings: str) -> Child:
        given = {
            "HMI_KNOWLEDGE_ADDRESS": self.store.address,
            "HMI_CACHE_DIR": str(self.directory / "cache"),
            "HMI_DEVICE": "cpu",
            "HMI_DTYPE": "float32",
            "HMI_NUM_THREADS": "1",
        }
        return Child("services.executor", {**given, **settings})

    def submit(self, item_id: int, text: str, digest: str) -> pb.Submit:
        tokenizer = Tokenizer.from_file(str(self.directory / "base" / "tokenizer.json"))
        return pb.Submit(
            item_id=item_id,
            key=pb.ModelKey(
                tenant="acme",
                model=f"m-{digest[:8]}",
                version=1,
                digest=digest,
                base_digest=self.base.digest,
            ),
            tokenizer_digest=self.base.tokenizer_digest,
            token_ids=tokenizer.encode(text).ids,
        )


@asynccontextmanager
async def world_in(directory: Path) -> AsyncIterator[World]:
    async with (
        running(store_child(directory / "store")) as store,
        open_channel(store.address, TOKEN) as channel,
    ):
        yield World(directory, store, KnowledgeServiceStub(channel))


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with world_in(tmp_path) as world:
        yield world


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[tuple[World, Child]]:
    """A world with a base, and one executor on the store's own volume, for several tests."""
    directory = tmp_path_factory.mktemp("shared")
    async with world_in(directory) as world:
        await world.add_base()
        async with running(world.executor(HMI_BLOB_DIR=str(world.blobs))) as executor:
            yield world, executor


@asynccontextmanager
async def stream(executor: Child) -> AsyncIterator[Gateway]:
    """A gateway's stream to an executor that serves a base."""
    async with open_channel(executor.address, TOKEN) as channel:
        gateway = Gateway(channel)
        await gateway.hello()
        yield gateway
        gateway.call.cancel()


def probabilities(event: pb.Event) -> NDArray[np.float64]:
    logits = np.frombuffer(event.output.data, "<f4").astype(np.float64)
    assert list(event.output.shape) == [len(logits)]
    powers: NDArray[np.float64] = np.exp(logits - logits.max())
    powers /= powers.sum()
    return powers


@pytest.mark.asyncio(loop_scope="module")
async def test_a_mixed_batch_equals_one_model_at_a_time(shared: tuple[World, Child]) -> None:
    world, executor = shared
    digests = [await world.add_version(seed) for seed in range(3)]
    async with stream(executor) as gateway:
        asked = [(seed, text) for text in TEXTS for seed in range(3)]
        await gateway.submit(
            *(world.submit(n, text, digests[seed]) for n, (seed, text) in enumerate(asked))
        )
        events = await gateway.answers(*range(len(asked)))
    oracle = Oracle(world.directory / "base")
    expected = {seed: oracle.probabilities(world.adapter(seed), TEXTS) for seed in range(3)}
    for (seed, text), event in zip(asked, events, strict=True):
        right = expected[seed][TEXTS.index(text)]
        np.testing.assert_allclose(probabilities(event), right, atol=1e-5)


async def test_a_base_added_later_is_served_and_a_stopped_executor_leaves(world: World) -> None:
    executor = world.executor()
    await executor.start()
    await world.add_base()
    digest = await world.add_version(0)
    await until_members(
        world.stub,
        lambda members: [world.base.digest] in [list(m.base_digests) for m in members.values()],
    )
    async with stream(executor) as gateway:
        await gateway.submit(world.submit(1, TEXTS[0], digest))
        [event] = await gateway.answers(1)
    assert event.error.code == code_pb2.OK
    assert await executor.stop() == 0
    assert not await members(world.stub)


async def test_known_models_are_answered_while_the_store_is_dead(world: World) -> None:
    await world.add_base()
    digest = await world.add_version(0)
    async with running(world.executor()) as executor, stream(executor) as gateway:
        await gateway.submit(world.submit(1, TEXTS[0], digest))
        await gateway.answers(1)
        await world.store.kill()
        unknown = hashlib.sha256(b"unknown").hexdigest()
        await gateway.submit(world.submit(2, TEXTS[0], digest), world.submit(3, "a", unknown))
        known, cold = await gateway.answers(2, 3)
    assert known.error.code == code_pb2.OK
    assert cold.error.code == code_pb2.UNAVAILABLE


@pytest.mark.asyncio(loop_scope="module")
async def test_a_blob_torn_on_the_shared_volume_fails_its_items_only(
    shared: tuple[World, Child],
) -> None:
    world, executor = shared
    good, torn = await world.add_version(0), await world.add_version(10)
    path = world.blobs / torn[:2] / torn
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    async with stream(executor) as gateway:
        await gateway.submit(world.submit(1, "a", torn), world.submit(2, "a", good))
        bad, fine = await gateway.answers(1, 2)
    assert bad.error.code == code_pb2.FAILED_PRECONDITION
    assert fine.error.code == code_pb2.OK


@pytest.mark.asyncio(loop_scope="module")
async def test_a_blob_that_is_no_adapter_is_refused_each_time(
    shared: tuple[World, Child],
) -> None:
    world, executor = shared
    digest = await Blobs(world.stub).write(b"no safetensors")
    async with stream(executor) as gateway:
        for item_id in (1, 2, 3):
            await gateway.submit(world.submit(item_id, "a", digest))
            [event] = await gateway.answers(item_id)
            assert event.error.code == code_pb2.INVALID_ARGUMENT


async def test_a_served_process_tells_its_metrics(world: World) -> None:
    await world.add_base()
    digest = await world.add_version(0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with running(world.executor(HMI_METRICS_PORT=str(port))) as executor:
        async with stream(executor) as gateway:
            await gateway.submit(world.submit(1, "a", digest), world.submit(2, "the cat", digest))
            await gateway.answers(1, 2)
            await gateway.call.done_writing()
            while await gateway.read():
                pass
        told = await asyncio.to_thread(samples, f"http://127.0.0.1:{port}/metrics")
    num_tokens = sum(len(world.submit(0, text, digest).token_ids) for text in ("a", "the cat"))
    assert told["hmi_batch_tokens_sum", ""] == num_tokens
    assert told["hmi_batch_tokens_count", ""] == told["hmi_batch_rows_count", ""]
    assert told["hmi_adapter_slots_used", "tiny"] == 1
    assert told["hmi_adapter_slots_total", "tiny"] > 1
    assert told["hmi_adapter_load_seconds_count", "host"] == 1
    assert told["hmi_adapter_load_seconds_count", "device"] == 1
    assert told["hmi_device_bytes", "adapters"] > 0
    assert told["hmi_batch_rows_sum", ""] == 2
    assert told["hmi_step_seconds_count", ""] >= 1
    assert told["hmi_executor_queue_tokens", ""] == 0
    assert told["hmi_requests_total", "executor"] >= 1


def samples(url: str) -> dict[tuple[str, str], float]:
    """What Prometheus would read, by name and service (or tier, kind, base)."""
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, label(sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def label(labels: dict[str, str]) -> str:
    """The one that tells samples apart here."""
    told = (labels[name] for name in ("service", "tier", "kind", "base") if name in labels)
    return next(told, "")


async def test_a_failpoint_ends_the_process_before_the_answer(world: World) -> None:
    await world.add_base()
    digest = await world.add_version(0)
    executor = world.executor(HMI_FAILPOINTS="before_event=kill@3")
    await executor.start()
    async with stream(executor) as gateway:
        for item_id in (1, 2):
            await gateway.submit(world.submit(item_id, "a", digest))
            await gateway.answers(item_id)
        await gateway.submit(world.submit(3, "a", digest))
        while await gateway.read():
            pass
        assert await gateway.call.code() == grpc.StatusCode.UNAVAILABLE
        assert 3 not in gateway.events
    assert (await executor.end())[0] == EXIT_STATUS


async def test_a_base_without_weights_stops_the_start(world: World) -> None:
    await world.add_base()
    weights = next(file for file in world.base.files if file.name == "model.safetensors")
    (world.blobs / weights.sha256[:2] / weights.sha256).unlink()
    executor = world.executor()
    await executor.launch()
    status, message = await executor.end()
    assert status == 1
    last = message.strip().splitlines()[-1]
    assert "model.safetensors" in last
    with pytest.raises(ValueError, match="Expecting"):
        json.loads(last)
