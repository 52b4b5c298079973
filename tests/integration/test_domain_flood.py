"""A tenant that floods a shared domain, through a whole stack: it costs the others next to nothing.

The benchmark's own scene (`python -m benchmarks drift`), on a tiny base and made-up subjects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from benchmarks.drift.live import Live
from benchmarks.drift.scenes import TIMES, Pace, Subject, flood, tenants
from hmi.client import Client
from hmi.stack import LocalStack
from tests.executor.split_world import write_bases
from tests.integration.conftest import EXECUTOR_ENV
from tests.tiny import WORDS

BASE = "flooded"
ROUND_TOKENS = 800  # of all but the one who floods
# How often each of the three words that may follow a word does, in texts of the others and of the
# flood. Unclipped, counts would give the tables to the flood: it would cost the others 25 points.
OTHERS, FLOOD = (0.7, 0.2, 0.1), (0.1, 0.2, 0.7)
# An update may change every row: what is tested is who shapes a table, not how fast it moves.
STORE_ENV = {"HMI_DOMAIN_MAX_CHANGED": "1"}


def texts(seed: int, num: int, preferences: Sequence[float]) -> list[str]:
    """Texts of twelve words, each followed by one of the same three, as often as these say.

    Whatever the preferences, the n-grams are the same: all may enter a table, and it is how often
    they come that decides which do.
    """
    every = np.tile(np.arange(len(WORDS)), (len(WORDS), 1))
    follows = np.random.default_rng(0).permuted(every, axis=1)[:, : len(preferences)]
    rng = np.random.default_rng(seed)

    def text() -> str:
        places = [int(rng.integers(len(WORDS)))]
        while len(places) < 12:
            places.append(int(follows[places[-1], rng.choice(len(preferences), p=preferences)]))
        return " ".join(WORDS[place] for place in places)

    return [text() for _ in range(num)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A stack with a tiny split base: the lower of two layers is looked up."""
    directory = tmp_path_factory.mktemp("flood")
    write_bases(directory)
    env = {"executor": EXECUTOR_ENV, "knowledge_store": STORE_ENV}
    with (
        LocalStack(
            directory / "stack", port=0, device="cpu", env=env, with_split_base=False
        ) as stack,
        Client(stack.address, key=stack.admin_key) as admin,
    ):
        admin.add_base(BASE, directory / "hminilm")
        made = Live(admin, BASE, directory / "hminilm" / "tokenizer.json")
        made.until(lambda: bool(admin.get_domain(BASE, "").table_version))
        made.add_tenants(tenants())
        yield made


def test_a_tenant_that_sends_twenty_times_as_much_as_all_others_costs_them_two_points_at_most(
    live: Live,
) -> None:
    subject = Subject(texts(1, 400, OTHERS), texts(2, 60, OTHERS))
    pace = Pace(1_000, ROUND_TOKENS, num_rounds=1)
    flooded = flood(live, subject, texts(3, 600, FLOOD), pace)
    assert not live.failures
    assert flooded.num_flood_tokens >= TIMES * flooded.num_other_tokens
    assert 100 * (flooded.quiet.share - flooded.flooded.share) <= 2
