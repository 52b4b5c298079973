"""What a starting stack says of the split base that it brings along."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from hmi.client import Client
from hmi.errors import Unavailable
from hmi.split_base import SplitBase


class _Client:
    """Answers a look at the root with the next table version; None: nobody answers."""

    def __init__(self, *versions: str | None) -> None:
        self.left = list(versions)

    def get_domain(self, base: str, path: str) -> SimpleNamespace:
        assert (base, path) == ("hminilm", "")
        version = self.left.pop(0)
        if version is None:
            raise Unavailable("starting anew")
        return SimpleNamespace(table_version=version)


def told(client: _Client, *, is_stopping: bool = False) -> list[str]:
    lines: list[str] = []
    SplitBase("hminilm", (), lines.append, lambda: is_stopping).follow_root(cast(Client, client))
    return lines


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmi.split_base._POLL_S", 0.0)


def test_that_the_root_is_being_filled_is_said_once_and_when_it_is_done() -> None:
    client = _Client("", None, "", "ab" * 32)
    filling, ready = told(client)
    assert filling.startswith("filling the root table of base hminilm")
    assert ready.startswith("base hminilm is ready")
    assert client.left == []


def test_a_root_that_is_there_is_no_news() -> None:
    assert told(_Client("ab" * 32)) == []


def test_nothing_is_waited_for_by_a_stack_that_stops() -> None:
    assert told(_Client(""), is_stopping=True) == []
