"""The executor dies at each named point of an item's life: answered once, billed once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from hmi.client import Client, Item
from hmi.stack import LocalStack
from tests.integration.conftest import EXECUTOR_ENV, Trained, open_account

NUM_ITEMS = 100
# More than are in flight, so that every life of the executor answers some.
KILL_AT = 60
IN_FLIGHT = 16


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "point", ["after_submit", "before_forward", "after_forward", "before_event"]
)
def test_an_executor_that_dies_there_loses_and_repeats_nothing(
    tmp_path: Path, lora: Callable[..., Trained], point: str
) -> None:
    restarts: list[str] = []
    env = {"executor": EXECUTOR_ENV | {"HMI_FAILPOINTS": f"{point}=kill@{KILL_AT}"}}
    stack = LocalStack(
        tmp_path, port=0, device="cpu", env=env, with_split_base=False, on_event=restarts.append
    )
    with stack, Client(stack.address, key=stack.admin_key) as admin:
        account = open_account(stack, admin, "acme")
        with account.client as client:
            client.push_version("m", lora(1).directory)
            items = [Item("m", f"item {number}") for number in range(NUM_ITEMS)]
            answers = list(client.stream(items, max_in_flight=IN_FLIGHT))
            usage = client.get_usage("acme")
    assert Counter(answer.index for answer in answers) == Counter(range(NUM_ITEMS))
    assert usage.num_items == NUM_ITEMS
    assert usage.num_tokens == sum(answer.unwrap().num_tokens for answer in answers)
    assert any("86" in line for line in restarts), "the failpoint ended the executor"
