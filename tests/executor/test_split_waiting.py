"""Items of split bases before their batch: what is refused, and what waits for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from hmi.executor.v1 import executor_pb2 as pb
from services.common.errors import (
    Cancelled,
    FailedPrecondition,
    HmiError,
    InvalidArgument,
    Unavailable,
)
from services.executor.admission import Admission
from services.executor.engine.batching import Batcher, Limits, Plan
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import Item
from services.executor.engine.tables import LoadedSplit, Retrieved, RowEncoder, Source
from services.executor.miss_policy import MissPolicy
from services.executor.plot.manifest import Manifest, NodeRef
from services.executor.service import Executor, Options
from tests.executor.fake_base import FakeBase, key, loaded

VERSION = "ab" * 32


@dataclass(frozen=True)
class FakeTable:
    version: str

    @property
    def manifest(self) -> Manifest:
        return Manifest("base", MissPolicy.BACKOFF, (NodeRef("", 0, "encoder", ()),))


class FakeTables:
    """Tables that are there when told to."""

    def __init__(self) -> None:
        self.ready: set[str] = set()
        self.broken: dict[str, HmiError] = {}
        self.prefetched: list[str] = []
        self.num_lent = 0
        self.num_lendings = 0

    def prefetch(self, version: str) -> None:
        self.prefetched.append(version)

    def is_ready(self, version: str) -> bool:
        return version in self.ready

    def acquire(self, version: str) -> FakeTable | None:
        if version in self.broken:
            raise self.broken[version]
        if version not in self.ready:
            return None
        self.num_lent += 1
        self.num_lendings += 1
        return FakeTable(version)

    def release(self, table: FakeTable) -> None:
        self.num_lent -= 1

    def retrieve(
        self, token_ids: NDArray[np.int64], lengths: Sequence[int], sources: Sequence[Source]
    ) -> Retrieved:
        raise AssertionError("nothing is computed here")

    def held_blobs(self) -> frozenset[str]:
        return frozenset(self.ready)

    def refresh(self) -> None:
        return

    def close(self) -> None:
        return


class FakeMerger:
    def split_values(self, values: torch.Tensor, segments: object) -> torch.Tensor:
        return values[:, 0]

    def merge(self, rows: torch.Tensor, *_more: object) -> torch.Tensor:
        return rows


def no_encoder(_sha256: str) -> RowEncoder:
    raise AssertionError("nothing is computed here")


@dataclass
class World:
    """A base "base", and "split" on top of its layers; both models m and n."""

    fake: FakeBase
    tables: FakeTables
    bases: dict[str, LoadedBase]

    def batcher(self) -> Batcher:
        return Batcher(self.bases, Limits(100, 8))


@pytest.fixture
def world() -> World:
    fake, tables = FakeBase(), FakeTables()
    split = LoadedSplit(1, "base", tables, FakeMerger(), no_encoder)
    bases = {"base": loaded(fake), "split": replace(loaded(fake, "split"), split=split)}
    return World(fake, tables, bases)


def item(number: int, base: str = "split", version: str = VERSION, name: str = "m") -> Item:
    return Item(
        number,
        key(name, base),
        np.ones(4, np.int64),
        entry_layer=int(base == "split"),
        table_version=version if base == "split" else "",
    )


def ids(plan: Plan | None) -> list[int]:
    return [] if plan is None else [row.item.id for row in plan.rows]


def submit(base: str, table_version: str) -> pb.Submit:
    model = key("m", base)
    return pb.Submit(
        item_id=1,
        key=pb.ModelKey(tenant="acme", model="m", version=1, digest=model.digest, base_digest=base),
        tokenizer_digest="tokenizer",
        token_ids=[1, 2],
        table_version=table_version,
    )


def test_an_item_of_a_split_base_enters_at_the_split_with_its_tables(world: World) -> None:
    admission = Admission(world.bases)
    admitted = admission.admit(submit("split", VERSION))
    assert (admitted.entry_layer, admitted.table_version) == (1, VERSION)
    plain = admission.admit(submit("base", ""))
    assert (plain.entry_layer, plain.table_version) == (0, "")


@pytest.mark.parametrize(
    ("base", "version"), [("split", ""), ("split", "no sha256"), ("base", VERSION)]
)
def test_tables_are_named_where_they_are_read_and_only_there(
    world: World, base: str, version: str
) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Admission(world.bases).admit(submit(base, version))
    assert raised.value.field == "table_version"


@pytest.mark.parametrize("is_adapter_first", [True, False])
def test_an_item_waits_for_adapter_and_tables_and_pins_neither_alone(
    world: World, is_adapter_first: bool
) -> None:
    batcher = world.batcher()
    assert batcher.add(item(0)) == []
    for is_adapter in (is_adapter_first, not is_adapter_first):
        assert not batcher.is_any_ready
        assert (world.fake.num_pins, world.tables.num_lent) == (0, 0)
        if is_adapter:
            world.fake.resident.add(key("m", "split"))
        else:
            world.tables.ready.add(VERSION)
        assert batcher.promote() == []
    assert (world.fake.num_pins, world.tables.num_lent) == (1, 1)
    plan = batcher.plan()
    assert ids(plan) == [0]
    assert plan is not None
    world.bases["split"].release(plan.rows[0].pinned)
    assert (world.fake.num_pins, world.tables.num_lent) == (0, 0)


@pytest.mark.parametrize("is_adapter_first", [True, False])
def test_what_came_first_is_not_used_up_by_looking_for_the_other(
    world: World, is_adapter_first: bool
) -> None:
    """A use ends the claim that keeps it in memory, and counts as one when some must leave."""
    if is_adapter_first:
        world.fake.resident.add(key("m", "split"))
    else:
        world.tables.ready.add(VERSION)
    batcher = world.batcher()
    batcher.add(item(0))
    for _ in range(3):
        batcher.promote()
    assert (world.fake.num_acquired, world.tables.num_lendings) == (0, 0)
    assert key("m", "split") in {*world.fake.prefetched, *world.fake.wanted}


def test_an_item_that_waits_for_tables_delays_no_other(world: World) -> None:
    world.fake.resident |= {key("m", "split"), key("m")}
    world.tables.ready.add(VERSION)
    batcher = world.batcher()
    for waiting in (item(0, version="cd" * 32), item(1), item(2, "base")):
        assert batcher.add(waiting) == []
    plan = batcher.plan()
    assert ids(plan) == [1, 2]
    assert plan is not None
    assert plan.unsplit_digest == "base"
    assert [type(event.error) for event in batcher.cancel(0)] == [Cancelled]
    assert len(batcher) == 0


def test_tables_that_fail_end_their_items_and_unpin_the_adapter(world: World) -> None:
    world.fake.resident.add(key("m", "split"))
    world.tables.broken[VERSION] = FailedPrecondition("another base's")
    [event] = world.batcher().add(item(0))
    assert isinstance(event.error, FailedPrecondition)
    assert world.fake.num_pins == 0


def test_what_is_ready_and_then_ended_is_unpinned(world: World) -> None:
    world.fake.resident.add(key("m", "split"))
    world.tables.ready.add(VERSION)
    batcher = world.batcher()
    batcher.add(item(0))
    batcher.add(item(1))
    batcher.cancel(0)
    assert (world.fake.num_pins, world.tables.num_lent) == (1, 1)
    assert len(batcher.drain(Unavailable("stopping"))) == 1
    assert (world.fake.num_pins, world.tables.num_lent) == (0, 0)


def test_a_hint_brings_adapter_and_tables(world: World) -> None:
    world.bases["split"].prefetch(key("m", "split"), VERSION)
    world.bases["base"].prefetch(key("n"), "")
    assert world.fake.prefetched == [key("m", "split"), key("n")]
    assert world.tables.prefetched == [VERSION]
    world.fake.resident.add(key("m", "split"))
    assert not world.bases["split"].is_ready(key("m", "split"), VERSION)
    world.tables.ready.add(VERSION)
    assert world.bases["split"].is_ready(key("m", "split"), VERSION)
    assert world.bases["split"].held_blobs() == {"digest-m", VERSION}


async def test_tables_that_follow_ones_read_here_are_brought_in(world: World) -> None:
    executor = Executor(Options("executor-1", Limits(100, 8)))
    for base in world.bases.values():
        executor.add(base)
    world.tables.ready.add(VERSION)
    executor.swap_tables("split", "unread", "unwanted")
    executor.swap_tables("base", VERSION, "unwanted")
    executor.swap_tables("gone", VERSION, "unwanted")
    executor.swap_tables("split", VERSION, "next")
    assert world.tables.prefetched == ["next"]
