"""No order of pushes, activations, deletions and evictions gives an answer of another's weights.

200 models of ten tenants share eight slots while versions change under concurrent requests. Every
answer names a digest, and equals what one-model-at-a-time transformers says of that digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import socket
import urllib.request
from collections import Counter
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
SECONDS = 12.0
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


async def predict_all(
    clients: list[AsyncClient], world: World, stop: asyncio.Event
) -> Counter[str]:
    """Ask random models until told to stop; count what came."""
    rng = random.Random(id(stop))
    seen: Counter[str] = Counter()
    while not stop.is_set():
        tenant = rng.randrange(NUM_TENANTS)
        index = rng.randrange(len(TEXTS))
        model = f"m{rng.randrange(MODELS_A_TENANT)}"
        try:
            answer = await clients[tenant].predict(model, TEXTS[index], timeout=20)
        except (NotFound, FailedPrecondition):
            seen["gone"] += 1
            continue
        assert answer.provenance.tenant == f"t{tenant}"
        assert answer.provenance.model == model
        result = answer[0]
        assert isinstance(result, Classification)
        scores = np.array([entry.score for entry in result.scores])
        wanted = world.oracles[answer.provenance.digest][index]
        assert np.abs(scores - wanted).max() < TOLERANCE, answer.provenance
        seen[answer.provenance.digest] += 1
    return seen


async def change_all(clients: list[AsyncClient], world: World, stop: asyncio.Event) -> Counter[str]:
    """Push, activate, delete random models and versions of them until told to stop."""
    rng = random.Random(7)
    extra = world.blobs[NUM_TENANTS * MODELS_A_TENANT :]
    changes: Counter[str] = Counter()
    while not stop.is_set():
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
                version = rng.choice(await client.list_versions(model))
                await client.delete_version(model, version.number)
            else:
                await client.delete_model(model)
                await client.push_version(model, rng.choice(extra), base="tiny")
        except (NotFound, FailedPrecondition):  # gone, or the version gets the traffic
            continue
        changes[action] += 1
        await asyncio.sleep(0.01)
    return changes


async def most_slots_used(metrics: str, stop: asyncio.Event) -> float:
    """The most adapters ever seen in device memory until told to stop."""
    most = 0.0
    while not stop.is_set():
        told = await asyncio.to_thread(samples, metrics)
        most = max(most, told.get(("hmi_adapter_slots_used", "tiny"), 0.0))
        await asyncio.sleep(0.1)
    return most


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
        stop = asyncio.Event()
        asking = [asyncio.create_task(predict_all(clients, world, stop)) for _ in range(24)]
        changing = asyncio.create_task(change_all(clients, world, stop))
        watching = asyncio.create_task(most_slots_used(metrics, stop))
        await asyncio.sleep(SECONDS)
        stop.set()
        seen = sum(await asyncio.gather(*asking), Counter())
        changes, most_used = await changing, await watching
        told = await asyncio.to_thread(samples, metrics)
        await admin.close()
    num_answers = seen.total() - seen["gone"]
    assert num_answers > 500
    assert len(seen) > 150, "many versions answered, so eviction was at work"
    assert changes.total() > 50
    assert {"push", "activate", "delete version", "delete"} <= changes.keys()
    assert 0 < most_used <= NUM_SLOTS
    assert told["hmi_adapter_slots_total", "tiny"] <= NUM_SLOTS
    assert told["hmi_adapter_load_seconds_count", "device"] > NUM_TENANTS * MODELS_A_TENANT
