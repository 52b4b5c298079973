"""No order of pushes, activations, deletions and evictions gives an answer of another's weights.

200 models of ten tenants share eight slots while versions change under concurrent requests, until
enough of each has happened. Every answer names a digest, and equals what one-model-at-a-time
transformers says of that digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import urllib.request
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from hmi.client import AsyncClient, Push
from hmi.client.predictions import Classification
from hmi.errors import FailedPrecondition, NotFound
from hmi.pack import pack
from hmi.stack import LocalStack
from tests.tiny import HIDDEN, LAYERS, Oracle, write_base, write_lora

NUM_TENANTS = 10
MODELS_A_TENANT = 20
NUM_EXTRA_VERSIONS = 60
NUM_LABELS = 8
NUM_SLOTS = 8
RANK = 4
TOLERANCE = 2e-5
# What has happened by the end, however long it takes.
NUM_ANSWERS = 4_000
NUM_ANSWERING = 220
NUM_CHANGES = {"push": 20, "activate": 10, "delete version": 10, "delete": 10}
NUM_LOADS = 5 * NUM_TENANTS * MODELS_A_TENANT
TEXTS = ["the cat sat on the mat", "a dog ran", "news of the river price vote team song"]


class World:
    """Every version's blob and its oracle, made before any server runs."""

    def __init__(self, directory: Path) -> None:
        self.base = write_base(directory / "base")
        oracle = Oracle(self.base)
        self.blobs: list[bytes] = []
        self.oracles: dict[str, np.ndarray] = {}
        for seed in range(NUM_TENANTS * MODELS_A_TENANT + NUM_EXTRA_VERSIONS):
            adapter = write_lora(directory / f"lora-{seed}", seed, NUM_LABELS, RANK)
            blob = pack(adapter)
            self.blobs.append(blob)
            digest = hashlib.sha256(blob).hexdigest()
            self.oracles[digest] = oracle.probabilities(adapter, TEXTS)

    def smallest_difference(self) -> float:
        """Of any two versions' scores for one text, the largest over labels."""
        scores = np.stack(list(self.oracles.values()))
        differences = np.abs(scores[:, None] - scores[None]).max(-1)
        differences[np.arange(len(scores)), np.arange(len(scores))] = np.inf
        return float(differences.min())


def slot_bytes() -> int:
    """Device bytes of one model: rank rows of query and value, and the head, in float32."""
    lora_rows = LAYERS * 2 * 2 * RANK
    head_rows = NUM_LABELS + 1
    return (lora_rows + head_rows) * HIDDEN * 4


@dataclass
class Seen:
    """What has happened so far; the tasks add to it until they are told to stop."""

    metrics: str
    """Where the executor tells of its adapters."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    answers: Counter[str] = field(default_factory=Counter)
    """By digest."""
    changes: Counter[str] = field(default_factory=Counter)
    """By kind."""
    most_used: float = 0.0
    """The most adapters ever seen in device memory."""
    num_loads: float = 0.0
    """Adapters brought into device memory."""

    @property
    def is_enough(self) -> bool:
        return (
            self.answers.total() >= NUM_ANSWERS
            and len(self.answers) >= NUM_ANSWERING
            and all(self.changes[kind] >= num for kind, num in NUM_CHANGES.items())
            and self.num_loads >= NUM_LOADS
        )


async def predict_all(clients: list[AsyncClient], world: World, seen: Seen, seed: int) -> None:
    """Ask random models, and compare each answer with the oracle of the version it names."""
    rng = random.Random(seed)
    while not seen.stop.is_set():
        tenant = rng.randrange(NUM_TENANTS)
        index = rng.randrange(len(TEXTS))
        model = f"m{rng.randrange(MODELS_A_TENANT)}"
        try:
            answer = await clients[tenant].predict(model, TEXTS[index], timeout=20)
        except (NotFound, FailedPrecondition):  # gone, as it may be
            continue
        assert answer.provenance.tenant == f"t{tenant}"
        assert answer.provenance.model == model
        result = answer[0]
        assert isinstance(result, Classification)
        scores = np.array([entry.score for entry in result.scores])
        wanted = world.oracles[answer.provenance.digest][index]
        assert np.abs(scores - wanted).max() < TOLERANCE, answer.provenance
        seen.answers[answer.provenance.digest] += 1


async def change_all(clients: list[AsyncClient], world: World, seen: Seen) -> None:
    """Push, activate, delete random models and versions of them."""
    rng = random.Random(7)
    extra = world.blobs[NUM_TENANTS * MODELS_A_TENANT :]
    while not seen.stop.is_set():
        client = clients[rng.randrange(NUM_TENANTS)]
        model = f"m{rng.randrange(MODELS_A_TENANT)}"
        action = rng.choice(["push", "push", "activate", "delete version", "delete"])
        try:
            if action == "push":
                await client.push_version(model, rng.choice(extra), base="tiny")
            elif action == "activate":
                version = rng.choice(await client.list_versions(model))
                await client.activate(model, version.number)
            elif action == "delete version":
                # The last gets the traffic, unless another was activated.
                await client.push_version(model, rng.choice(extra), base="tiny")
                version = rng.choice(await client.list_versions(model))
                await client.delete_version(model, version.number)
            else:
                await client.delete_model(model)
                await client.push_version(model, rng.choice(extra), base="tiny")
        except (NotFound, FailedPrecondition):  # gone, or the version gets the traffic
            continue
        seen.changes[action] += 1
        await asyncio.sleep(0.01)


async def watch_slots(seen: Seen) -> None:
    """Read the executor's figures, and end everything once enough has happened."""
    while not seen.is_enough:
        told = await asyncio.to_thread(samples, seen.metrics)
        seen.most_used = max(seen.most_used, told.get(("hmi_adapter_slots_used", "tiny"), 0.0))
        seen.num_loads = told.get(("hmi_adapter_load_seconds_count", "device"), 0.0)
        await asyncio.sleep(0.1)
    seen.stop.set()


def samples(url: str) -> dict[tuple[str, str], float]:
    """What Prometheus would read about adapters, by name and base or tier."""
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode()
    return {
        (sample.name, sample.labels.get("base") or sample.labels.get("tier", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if family.name.startswith("hmi_adapter")
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.timeout(240)
async def test_every_answer_is_that_of_the_version_it_names(tmp_path: Path) -> None:
    world = await asyncio.to_thread(World, tmp_path)
    assert world.smallest_difference() > 100 * TOLERANCE
    port = free_port()
    metrics = f"http://127.0.0.1:{port}/metrics"
    small = {
        "HMI_DTYPE": "float32",
        "HMI_DEVICE_ADAPTER_BYTES": str(NUM_SLOTS * slot_bytes()),
        "HMI_METRICS_PORT": str(port),
    }
    with LocalStack(
        tmp_path / "data", port=0, env={"executor": small}, with_split_base=False
    ) as stack:
        admin = AsyncClient(stack.address, key=stack.admin_key)
        await admin.add_base("tiny", world.base)
        clients = [admin.for_tenant(f"t{i}") for i in range(NUM_TENANTS)]
        for tenant, client in enumerate(clients):
            await admin.create_tenant(f"t{tenant}")
            first = tenant * MODELS_A_TENANT
            blobs = world.blobs[first : first + MODELS_A_TENANT]
            outcomes = await client.push_versions(
                [Push(f"m{i}", blob, base="tiny") for i, blob in enumerate(blobs)]
            )
            assert all(outcome.error is None for outcome in outcomes)
        seen = Seen(metrics)
        async with asyncio.TaskGroup() as group:
            for seed in range(24):
                group.create_task(predict_all(clients, world, seen, seed))
            group.create_task(change_all(clients, world, seen))
            group.create_task(watch_slots(seen))
        told = await asyncio.to_thread(samples, metrics)
        await admin.close()
    assert 0 < seen.most_used <= NUM_SLOTS
    assert told["hmi_adapter_slots_total", "tiny"] <= NUM_SLOTS
    assert told["hmi_adapter_load_seconds_count", "device"] >= NUM_LOADS
