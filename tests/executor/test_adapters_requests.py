"""What may be between disk and device at a time."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from services.common.errors import DataLoss, HmiError, InvalidArgument, Unavailable
from services.executor.adapters import failures, requests
from services.executor.adapters.failures import Failures
from services.executor.adapters.packing import Packed
from services.executor.adapters.requests import Requests


@dataclass(frozen=True)
class Version:
    digest: str
    tenant: str = "acme"


def packed(size_bytes: int) -> Packed:
    head: Any = None
    rows = torch.empty(size_bytes // 4, 1, dtype=torch.float32, device="meta")
    return Packed(rows=rows, tables={}, bottlenecks={}, head=head)


def of(count: int) -> Requests:
    held = Requests()
    for number in range(count):
        held.add(Version(f"{number:064x}"), is_claimed=True)
    return held


def read_one(held: Requests, size_bytes: int) -> bool:
    """As the store does: take what may be staged, finish one. Whether anything may be."""
    new = held.to_stage()
    for request in new:
        request.is_staging = True
    reading = [request for request in held._requests.values() if request.is_staging]
    if not reading:
        return False
    reading[0].is_staging, reading[0].packed = False, packed(size_bytes)
    return True


def test_small_ones_are_staged_by_number() -> None:
    held = of(200)
    while read_one(held, 4_000):
        pass
    assert len(held.staged()) == 64


def test_large_ones_are_staged_by_bytes() -> None:
    held = of(200)
    size_bytes = 256 << 20
    while read_one(held, size_bytes):
        pass
    # Those that were being read when it was full come too.
    num_most = requests._MAX_STAGED_BYTES // size_bytes + requests._MAX_READING
    assert 4 <= len(held.staged()) <= num_most
    for request, _ in held.staged():
        held.take(request.key)
    assert held.to_stage()


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(failures, "time", clock)
    return clock


def test_a_load_that_fails_is_tried_later_each_time_and_never_too_late(clock: Clock) -> None:
    held, key = Failures(), Version("a")
    waits = []
    for _ in range(12):
        held.fail(key, Unavailable("away"))
        error: Any = held.tell(key)
        waits.append(error.retry_after_s)
        assert held.is_known(key)
        clock.now += waits[-1] + 0.001
        assert not held.is_known(key)
        assert held.tell(key) is None
    for num, wait_s in enumerate(waits):
        most = min(5.0, 0.1 * 2**num)
        assert 0.5 * most <= wait_s <= most
    assert len(set(waits)) == len(waits)
    clock.now += 100
    held.fail(key, Unavailable("away"))
    assert held.tell(key).retry_after_s <= 0.1  # type: ignore[union-attr]


def test_who_waited_is_told_also_when_the_pause_is_over(clock: Clock) -> None:
    held, key = Failures(), Version("a")
    held.fail(key, Unavailable("away"))
    clock.now += 1.0
    assert held.tell(key) is not None
    assert held.tell(key) is None


def test_a_refusal_is_of_the_bytes_and_believed_for_minutes(clock: Clock) -> None:
    held = Failures()
    held.refuse(Version("a"), InvalidArgument("blob", "no"))
    clock.now += 250
    assert isinstance(held.tell(Version("a", "another")), InvalidArgument)
    assert held.is_known(Version("a"))
    clock.now += 100
    assert not held.is_known(Version("a"))
    assert held.tell(Version("a")) is None


def test_what_is_told_again_and_again_gathers_nothing(clock: Clock) -> None:
    held, refused, failed = Failures(), Version("a"), Version("b")
    held.refuse(refused, InvalidArgument("blob", "no"))
    held.fail(failed, DataLoss("damaged"))
    for key in (refused, failed):
        lengths = []
        for _ in range(20):
            with pytest.raises(HmiError) as caught:
                raise held.tell(key) or AssertionError
            lengths.append(len(traceback.extract_tb(caught.value.__traceback__)))
        assert lengths == [1] * 20


def test_a_load_that_succeeds_ends_all_suspicion(clock: Clock) -> None:
    held = Failures()
    held.fail(Version("a"), Unavailable("away"))
    assert held.is_suspect("acme")
    held.end(Version("b"))
    assert not held.is_suspect("acme")
    held.fail(Version("a"), Unavailable("away"))
    clock.now += 11
    assert not held.is_suspect("acme")


def test_what_is_remembered_is_bounded(clock: Clock) -> None:
    held = Failures()
    for number in range(10_000):
        held.fail(Version(f"{number}", f"{number}"), Unavailable("away"))
        held.refuse(Version(f"{number}", f"{number}"), InvalidArgument("blob", "no"))
    sizes = [len(held._failures), len(held._refused), len(held._suspect_until)]
    assert sizes == [failures._MAX_KEPT] * 3
