"""Whose adapter leaves the device for whose: a tenant of many cold models evicts its own."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from services.executor.adapters import device
from services.executor.adapters.arena import Arena
from services.executor.adapters.device import DeviceTier
from services.executor.adapters.requests import Requests
from services.executor.adapters.slots import Slot

ROWS_EACH = 4


@dataclass(frozen=True)
class Version:
    tenant: str
    digest: str


@pytest.fixture
def tier() -> DeviceTier:
    """Room for ten."""
    size_bytes = (10 * ROWS_EACH + 1) * 8 * 4
    return DeviceTier(
        Arena(8, size_bytes=size_bytes, dtype=torch.float32, device=torch.device("cpu"))
    )


def come(tier: DeviceTier, tenant: str, name: str) -> Version | None:
    """Bring an adapter in, used once; None if there is no room."""
    numbers = tier.make_room(ROWS_EACH, tenant, is_hint=False)
    if numbers is None:
        return None
    key = Version(tenant, name)
    packed = cast(Any, SimpleNamespace(tables={}, bottlenecks={}, head=None))
    tier.put(Slot(key, packed, numbers), is_claimed=False)
    use(tier, key)
    return key


def use(tier: DeviceTier, key: Version) -> None:
    slot = tier.acquire(key)
    assert slot is not None
    tier.release(slot)


def test_a_tenant_of_many_models_evicts_its_own_however_cool_anothers_are(
    tier: DeviceTier,
) -> None:
    quiet = [come(tier, "quiet", f"q{number}") for number in range(3)]
    for number in range(50):
        flood = come(tier, "flood", f"f{number}")
        assert flood is not None
        for _ in range(5):
            use(tier, flood)  # hotter than the quiet tenant's
    assert all(key in tier for key in quiet)
    assert tier.num_rows_of("flood") == 7 * ROWS_EACH


def test_who_has_less_takes_from_who_has_more(tier: DeviceTier) -> None:
    for number in range(10):
        come(tier, "flood", f"f{number}")
    quiet = [come(tier, "quiet", f"q{number}") for number in range(8)]
    assert None not in quiet
    assert tier.num_rows_of("flood") >= 4 * ROWS_EACH


def test_what_nobody_used_of_late_leaves_for_anybody(
    tier: DeviceTier, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = [come(tier, f"gone-{number}", "m") for number in range(10)]
    slot = tier.acquire(cast(Version, gone[0]))
    assert slot is not None
    assert come(tier, "gone-0", "m2") is None  # others used theirs just now, and have no more
    monkeypatch.setattr(device, "_RECENT_S", 0.0)
    assert come(tier, "gone-0", "m2") is not None
    tier.release(slot)


def test_whoever_is_overdue_takes_from_anybody(tier: DeviceTier) -> None:
    for number in range(10):
        come(tier, f"tenant-{number}", "m")
    slot = tier.acquire(Version("tenant-0", "m"))
    assert tier.make_room(ROWS_EACH, "tenant-0", is_hint=False) is None
    assert tier.make_room(ROWS_EACH, None, is_hint=False) is not None
    tier.release(cast(Slot, slot))


def test_the_tenant_that_has_least_is_loaded_first(tier: DeviceTier) -> None:
    for number in range(5):
        come(tier, "flood", f"f{number}")
    requests = Requests(tier.num_rows_of)
    for number in range(5, 10):
        requests.add(Version("flood", f"f{number}"), is_claimed=True)
    requests.add(Version("quiet", "hint"), is_claimed=False)
    requests.add(Version("quiet", "claim"), is_claimed=True)
    assert [request.key.digest for request in requests._in_order()] == [
        "claim", "f5", "f6", "f7", "f8", "f9", "hint",
    ]  # fmt: skip
