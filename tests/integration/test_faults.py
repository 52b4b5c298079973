"""Processes die at any moment: every item is answered once, billed once, and the rest goes on."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from hmi.client import Answer, Client, Item, Usage
from hmi.errors import HmiError, Unavailable
from hmi.stack import LocalStack
from tests.integration.conftest import EXECUTOR_ENV, Account, Trained, open_account

Lora = Callable[..., Trained]

pytestmark = pytest.mark.timeout(120)

NUM_ITEMS = 600


@pytest.fixture(scope="module")
def frail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack of this module's own, whose processes are killed."""
    data_dir = tmp_path_factory.mktemp("frail")
    with LocalStack(
        data_dir, port=0, device="cpu", env={"executor": EXECUTOR_ENV}, with_split_base=False
    ) as stack:
        yield stack


@pytest.fixture(scope="module")
def account(frail: LocalStack, lora: Lora) -> Iterator[Account]:
    """A tenant with two models on it."""
    with Client(frail.address, key=frail.admin_key) as admin:
        opened = open_account(frail, admin, "acme")
    with opened.client as client:
        for seed in (1, 2):
            client.push_version(f"m{seed}", lora(seed).directory)
        yield opened


def _kill(stack: LocalStack, name: str) -> int:
    pid = stack.pids[name]
    os.kill(pid, signal.SIGKILL)
    return pid


def _wait_for_another(stack: LocalStack, name: str, pid: int) -> None:
    end = time.monotonic() + 20
    while stack.pids.get(name) in (None, pid):
        assert time.monotonic() < end, f"{name} was not started again"
        time.sleep(0.05)


def _items(num: int) -> list[Item]:
    rng = random.Random(0)
    return [Item(f"m{1 + n % 2}", f"item {n} " + "word " * rng.randrange(30)) for n in range(num)]


def _check(answers: list[Answer], items: list[Item], lora: Lora) -> None:
    """Each answered once, by its own model's weights."""
    assert Counter(answer.index for answer in answers) == Counter(range(len(items)))
    for answer in answers:
        answer.unwrap()
    for answer in random.Random(1).sample(answers, 20):
        prediction = answer.unwrap()
        seed = int(answer.item.model.removeprefix("m"))
        expected = lora(seed).scores(answer.item.text, None).tolist()
        scores = [one.score for one in prediction.scores]  # type: ignore[attr-defined]
        assert scores == pytest.approx(expected, abs=1e-4)


def _check_bill(account: Account, before: Usage, answers: list[Answer]) -> None:
    """Each answer counted once since `before`, however often its item was computed."""
    after = account.client.get_usage(account.name)
    assert after.num_items - before.num_items == len(answers)
    num_tokens = sum(answer.unwrap().num_tokens for answer in answers)
    assert after.num_tokens - before.num_tokens == num_tokens
    assert after.num_errors == before.num_errors


@pytest.mark.parametrize("kill_at", [1, 150, 400])
def test_killed_executor_loses_and_repeats_nothing(
    frail: LocalStack, account: Account, lora: Lora, kill_at: int
) -> None:
    before = account.client.get_usage(account.name)
    items = _items(NUM_ITEMS)
    answers: list[Answer] = []
    for answer in account.client.stream(items, max_in_flight=128):
        answers.append(answer)
        if len(answers) == kill_at:
            pid = _kill(frail, "executor")
    _check(answers, items, lora)
    _check_bill(account, before, answers)
    _wait_for_another(frail, "executor", pid)


def test_executor_killed_again_and_again(frail: LocalStack, account: Account, lora: Lora) -> None:
    stop = threading.Event()

    def harass() -> None:
        rng = random.Random(2)
        for _ in range(3):
            if stop.wait(rng.uniform(0.2, 3.0)):
                return
            if "executor" in frail.pids:
                _kill(frail, "executor")

    thread = threading.Thread(target=harass)
    thread.start()
    before = account.client.get_usage(account.name)
    items = _items(NUM_ITEMS)
    try:
        answers = list(account.client.stream(items, max_in_flight=64))
    finally:
        stop.set()
        thread.join()
    _check(answers, items, lora)
    _check_bill(account, before, answers)


def test_known_models_are_served_without_the_store(
    frail: LocalStack, account: Account, lora: Lora
) -> None:
    account.client.predict("m1", "warm")
    pid = _kill(frail, "knowledge_store")
    end = time.monotonic() + 2.0
    num_answered = 0
    while time.monotonic() < end:
        for model in ("m1", "m2"):
            assert account.client.predict(model, "text", timeout=5).provenance.model == model
            num_answered += 1
    assert num_answered > 10
    _wait_for_another(frail, "knowledge_store", pid)


def test_store_recovers_by_itself_with_all_it_acknowledged(
    frail: LocalStack, account: Account, lora: Lora
) -> None:
    pushed = account.client.push_version("kept", lora(3).directory)
    pid = _kill(frail, "knowledge_store")
    _wait_for_another(frail, "knowledge_store", pid)
    end = time.monotonic() + 20
    while True:
        try:
            again = account.client.push_version("kept", lora(4).directory, timeout=10)
            break
        except Unavailable:
            assert time.monotonic() < end
    assert (pushed.number, again.number) == (1, 2)
    numbers = [version.number for version in account.client.list_versions("kept")]
    assert numbers == [1, 2]
    for number in numbers:
        answer = account.client.predict("kept", "text", version=number)
        assert answer.provenance.version == number


def test_stream_outlives_its_gateway(frail: LocalStack, account: Account, lora: Lora) -> None:
    items = _items(300)
    answers: list[Answer] = []
    for answer in account.client.stream(items, max_in_flight=32):
        answers.append(answer)
        if len(answers) == 100:
            _kill(frail, "gateway")
    _check(answers, items, lora)


def test_processes_end_with_the_stack(frail: LocalStack, account: Account) -> None:
    """Placed last: it ends the stack of this module."""
    pids = frail.pids
    assert set(pids) == {"knowledge_store", "gateway", "executor"}
    frail.stop()
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with pytest.raises(HmiError):
        account.client.predict("m1", "text", timeout=2)
    assert not (frail.data_dir / "address").exists()
