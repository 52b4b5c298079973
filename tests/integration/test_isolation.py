"""No order of pushes, activations, deletions and evictions gives an answer of another's weights.

200 models of ten tenants share eight slots while versions change under concurrent requests. Every
answer names a digest, and equals what one-model-at-a-time transformers says of that digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

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


async def change_all(clients: list[AsyncClient], world: World, stop: asyncio.Event) -> int:
    """Push, activate, roll back and delete random models until told to stop."""
    rng = random.Random(7)
    extra = world.blobs[NUM_TENANTS * MODELS_A_TENANT :]
    num_changes = 0
    while not stop.is_set():
        client = clients[rng.randrange(NUM_TENANTS)]
        model = f"m{rng.randrange(MODELS_A_TENANT)}"
        action = rng.choice(["push", "push", "activate", "delete"])
        try:
            if action == "push":
                await client.push_version(model, rng.choice(extra), base="tiny")
            elif action == "activate":
                version = rng.choice(await client.list_versions(model))
                await client.activate(model, version.number)
            else:
                await client.delete_model(model)
                await client.push_version(model, rng.choice(extra), base="tiny")
        except NotFound:
            continue
        num_changes += 1
        await asyncio.sleep(0.01)
    return num_changes


@pytest.mark.timeout(240)
async def test_every_answer_is_that_of_the_version_it_names(tmp_path: Path) -> None:
    world = await asyncio.to_thread(World, tmp_path)
    assert world.smallest_difference() > 100 * TOLERANCE
    small = {"HMI_DTYPE": "float32", "HMI_DEVICE_ADAPTER_BYTES": str(NUM_SLOTS * slot_bytes())}
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
        await asyncio.sleep(SECONDS)
        stop.set()
        seen = sum(await asyncio.gather(*asking), Counter())
        num_changes = await changing
        await admin.close()
    num_answers = seen.total() - seen["gone"]
    assert num_answers > 500
    assert len(seen) > 150, "many versions answered, so eviction was at work"
    assert num_changes > 50
