"""Models that share a domain: each takes its adapter and its head, and the table is there once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift.live import Live
from benchmarks.drift.memory import adapters, grow
from hmi.client import Client
from hmi.stack import LocalStack
from services.common.base_config import BaseConfig
from tests.executor.split_world import SPLIT, write_bases
from tests.tiny import WORDS

BASE = "sharing"
NUM_MODELS = 48
# A model's own objects, and what the allocator keeps; a copy of the table would be far beyond.
SLACK_BYTES = 64 << 10


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sharing")
    write_bases(directory, seed=1)
    return directory / "hminilm"


def test_a_further_model_takes_its_adapter_and_head_alone(
    checkpoint: Path, stack: LocalStack, admin: Client
) -> None:
    admin.add_base(BASE, checkpoint)
    live = Live(admin, BASE, checkpoint / "tokenizer.json")
    live.until(lambda: bool(admin.get_domain(BASE, "").table_version))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 40)) for _ in range(1_500)]
    live.add_domain("shared", texts, half_life_tokens=1_000)
    admin.create_tenant("sharer")
    config = BaseConfig.from_file(checkpoint / "config.json")
    blobs = adapters(config, SPLIT, NUM_MODELS)
    growth = grow(admin, BASE, "shared", "sharer", blobs, texts[0], stack.pids["executor"])
    before, after = growth.before, growth.after
    assert growth.num_models == NUM_MODELS - before.num_versions > 32
    # As the statistics say: a model's bytes are its blob's, the node's are what they were.
    assert after.version_bytes == sum(map(len, blobs))
    assert after.node_bytes == before.node_bytes > 4 * SLACK_BYTES
    # As measured: no row more, no byte of the device more than the arena it began with.
    assert after.table_rows == before.table_rows
    assert after.device_bytes == before.device_bytes
    assert after.device_bytes["tables"] > 0
    assert growth.resident_bytes < 2 * growth.version_bytes + SLACK_BYTES
