"""Two gateways and two executors behind one store: what one loses the others take over."""

from __future__ import annotations

import random
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hmi.client import Answer, Item
from tests.integration.cluster import Cluster, Process, running
from tests.tiny import Oracle, write_base, write_lora

pytestmark = pytest.mark.timeout(120)

NUM_ITEMS = 1_500
MODELS = ("m0", "m1", "m2", "m3")
WORDS = ("the", "cat", "sat", "on", "mat", "news", "sport", "river")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """PEFT directories by model."""
    directory = tmp_path_factory.mktemp("models")
    return {name: write_lora(directory / name, seed) for seed, name in enumerate(MODELS)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with running(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def key(cluster: Cluster, models: dict[str, Path]) -> str:
    """A tenant's, with every model."""
    key = cluster.tenant("acme")
    for name, directory in models.items():
        cluster.push(key, name, directory)
    return key


def _items(seed: int) -> list[Item]:
    rng = random.Random(seed)
    texts = (" ".join(rng.choices(WORDS, k=rng.randrange(1, 30))) for _ in range(NUM_ITEMS))
    return [Item(rng.choice(MODELS), text) for text in texts]


def _stream(cluster: Cluster, gateway: int, key: str) -> list[Answer]:
    with cluster.client(gateway, key) as client:
        return list(client.stream(_items(gateway), max_in_flight=128))


def _usage(cluster: Cluster, key: str) -> Counter[str]:
    """Of all gateways together."""
    total: Counter[str] = Counter()
    for gateway in range(len(cluster.gateways)):
        with cluster.client(gateway, key) as client:
            used = client.get_usage("acme")
            total.update(items=used.num_items, tokens=used.num_tokens, errors=used.num_errors)
    return total


def _check(cluster: Cluster, key: str, before: Counter[str], streams: list[list[Answer]]) -> None:
    """Each item answered once, and billed once over all gateways."""
    num_tokens = 0
    for answers in streams:
        assert Counter(answer.index for answer in answers) == Counter(range(NUM_ITEMS))
        num_tokens += sum(answer.unwrap().num_tokens for answer in answers)
    after = _usage(cluster, key)
    assert after["items"] - before["items"] == NUM_ITEMS * len(streams)
    assert after["tokens"] - before["tokens"] == num_tokens
    assert after["errors"] == before["errors"]


def _check_scores(models: dict[str, Path], base: Path, answers: list[Answer]) -> None:
    """By the named model's own weights."""
    chosen = random.Random(1).sample(answers, 20)
    for name, directory in models.items():
        of_model = [answer for answer in chosen if answer.item.model == name]
        if of_model:
            oracle = Oracle(base).probabilities(directory, [a.item.text for a in of_model])
            for answer, expected in zip(of_model, oracle, strict=True):
                scores = [one.score for one in answer.unwrap().scores]  # type: ignore[attr-defined]
                assert scores == pytest.approx(expected.tolist(), abs=1e-4)


def _num_rows(executor: Process) -> float:
    return executor.metric("hmi_batch_rows_sum")


def test_executors_killed_at_random_times_lose_and_repeat_nothing(
    cluster: Cluster, key: str, models: dict[str, Path], tmp_path: Path
) -> None:
    """One after the other, each started again while the other serves."""
    before = _usage(cluster, key)
    stop = threading.Event()
    kills = []

    def harass() -> None:
        rng = random.Random(3)
        for executor in cluster.executors * 2:
            if stop.wait(rng.uniform(0.1, 0.6)):
                return
            if executor.pid is not None:
                executor.send(signal.SIGKILL)
                kills.append(executor)

    thread = threading.Thread(target=harass)
    thread.start()
    try:
        with ThreadPoolExecutor(2) as pool:
            streams = list(pool.map(lambda n: _stream(cluster, n, key), range(2)))
    finally:
        stop.set()
        thread.join()
    assert kills
    _check(cluster, key, before, streams)
    _check_scores(models, write_base(tmp_path / "base"), streams[0] + streams[1])
    for executor in cluster.executors:
        executor.child.wait_ready(30)
    cluster.wait_until_connected()


def test_a_models_requests_move_when_its_executor_is_killed(cluster: Cluster, key: str) -> None:
    """Placed last: one executor is not started again."""
    with cluster.client(0, key) as client:
        rows = [_num_rows(executor) for executor in cluster.executors]
        for _ in range(20):
            client.predict("m0", "the cat")
        used = [_num_rows(e) - n for e, n in zip(cluster.executors, rows, strict=True)]
    # One at a time, they all go to the first of the model's own order.
    assert sorted(used) == [0, 20]
    victim, other = (cluster.executors[i] for i in sorted((0, 1), key=lambda i: -used[i]))
    before, num_rows = _usage(cluster, key), _num_rows(other)
    answered = threading.Semaphore(0)

    def stream(gateway: int) -> list[Answer]:
        answers = []
        with cluster.client(gateway, key) as client:
            for answer in client.stream(_items(gateway), max_in_flight=128):
                answers.append(answer)
                answered.release()
        return answers

    with ThreadPoolExecutor(2) as pool:
        streams = [pool.submit(stream, gateway) for gateway in range(2)]
        for _ in range(NUM_ITEMS // 4):
            assert answered.acquire(timeout=30)
        victim.kill_for_good()
        done = [stream.result() for stream in streams]
    _check(cluster, key, before, done)
    assert _num_rows(other) - num_rows > NUM_ITEMS
    with cluster.client(1, key) as client:
        assert client.predict("m0", "the cat", timeout=10).provenance.model == "m0"
