"""Traffic that moves to another subject, through a whole stack: tables follow, answers stay right.

The benchmark's own scene (`python -m benchmarks drift`), on a tiny base and made-up subjects.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.drift.live import Live
from benchmarks.drift.oracle import Oracle, chosen
from benchmarks.drift.scenes import Pace, Subject, drift, tenants
from hmi.client import Client
from hmi.stack import LocalStack
from services.common.local_encoder_format import FILE_NAME
from tests.executor.split_world import write_bases
from tests.tiny import WORDS

BASE = "drifting"
TOLERANCE = 1e-4  # of a vector of length 1; float32 on both sides
NUM_UPDATES = 6


def subject(seed: int) -> Subject:
    """Texts of twelve words, each followed by one of three that the subject prefers."""
    rng = np.random.default_rng(seed)
    follows = np.stack([rng.permutation(len(WORDS))[:3] for _ in WORDS])

    def text() -> str:
        words = [int(rng.integers(len(WORDS)))]
        while len(words) < 12:
            words.append(int(follows[words[-1], rng.choice(3, p=[0.8, 0.15, 0.05])]))
        return " ".join(WORDS[word] for word in words)

    return Subject([text() for _ in range(400)], [text() for _ in range(60)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split checkpoint: a tiny BERT of two layers, the lower looked up."""
    directory = tmp_path_factory.mktemp("drift")
    write_bases(directory)
    return directory / "hminilm"


@pytest.fixture(scope="module")
def live(checkpoint: Path, admin: Client) -> Live:
    admin.add_base(BASE, checkpoint)
    made = Live(admin, BASE, checkpoint / "tokenizer.json")
    made.until(lambda: bool(admin.get_domain(BASE, "").table_version))
    made.add_tenants(tenants())
    return made


def test_tables_follow_traffic_that_moves_and_no_answer_is_wrong_meanwhile(
    live: Live, checkpoint: Path, stack: LocalStack
) -> None:
    pace = Pace(2_000, round_tokens=9_000, num_rounds=1, updates_a_round=NUM_UPDATES)
    move = drift(live, subject(1), subject(2), pace)
    assert not live.failures
    assert move.lost(move.before) > 20
    assert move.lost(move.after[1]) <= 2
    # What the corpus holds too is exempt from the bound: the first takes that in at once.
    for update in move.updates:
        size = max(update.num_before, update.num_wanted)
        assert 0 < update.num_bounded <= max(3, 0.05 * size)
    moved = [answer for answer in live.answers if answer.path == "moving"]
    versions = list(dict.fromkeys(answer.table_version for answer in moved))
    assert len(versions) > NUM_UPDATES // 2
    oracle = Oracle(checkpoint, checkpoint / FILE_NAME, stack.data_dir / "blobs")
    sample = chosen(live.answers, 100)
    assert max(map(oracle.distance, sample)) <= TOLERANCE
    # What is checked can be told: the first table would have answered the last text otherwise.
    assert oracle.distance(moved[-1], versions[0]) > 100 * TOLERANCE
