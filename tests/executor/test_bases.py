"""Bases leave with their deletion, and come once what was missing is there."""

from __future__ import annotations

import asyncio
import gc
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.follow import follow
from services.executor import bases as module
from services.executor.engine.items import Event, Item, ModelKey
from tests.executor.fake_base import key
from tests.executor.test_store import Link, blobs, eventually, link, store

__all__ = ["blobs", "link", "store"]


class Sink:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def post(self, item_id: int, event: Event) -> None:
        self.events.append(event)

    def flush(self) -> None:
        return


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.02)


async def begin(link: Link) -> None:
    link.begin(follow(link.follower, link.stub))
    await link.bases.start()
    link.begin(link.bases.run())


async def delete(link: Link, name: str) -> None:
    await link.stub.DeleteBase(pb.DeleteBaseRequest(name=name))


def item_of(base: resources_pb2.Base) -> tuple[ModelKey, Item]:
    model = key("topic", base.digest)
    return model, Item(1, model, np.array([3, 4], np.int64))


async def test_a_deleted_base_is_unloaded_and_can_come_back(link: Link, tmp_path: Path) -> None:
    first = await link.put_base("first")
    second = await link.put_base("second")
    await begin(link)
    await eventually(lambda: set(link.executor.bases) == {first.digest, second.digest})
    memory = weakref.ref(link.executor.bases[first.digest].encoder)
    await delete(link, "first")
    await eventually(lambda: set(link.executor.bases) == {second.digest})
    await eventually(lambda: not (tmp_path / "bases" / first.digest).exists())
    gc.collect()
    assert memory() is None
    assert link.bases.held_blobs == {file.sha256 for file in second.files}
    assert await link.put_base("first") is not None
    await eventually(lambda: set(link.executor.bases) == {first.digest, second.digest})


async def test_the_same_files_under_another_name_stay(link: Link) -> None:
    first = await link.put_base("first")
    again = resources_pb2.Base()
    again.CopyFrom(first)
    again.name = "again"
    await link.stub.PutBase(pb.PutBaseRequest(base=again))
    await begin(link)
    await delete(link, "first")
    later = await link.put_base("later")
    await eventually(lambda: later.digest in link.executor.bases)
    assert first.digest in link.executor.bases


async def test_a_deleted_base_answers_its_items_before_it_goes(link: Link) -> None:
    base = await link.put_base("first")
    await begin(link)
    await eventually(lambda: base.digest in link.executor.bases)
    model, item = item_of(base)
    fake, sink = link.fake, Sink()
    link.executor.dispatcher.submit([(7, item)], sink)
    await eventually(lambda: model in fake.wanted)  # it waits for its adapter
    await delete(link, "first")
    await eventually(lambda: link.follower.view.bases == {})
    await asyncio.sleep(0.1)
    assert base.digest in link.executor.bases
    fake.resident.add(model)
    link.executor.dispatcher.wake()
    await eventually(lambda: link.executor.bases == {})
    [event] = sink.events
    assert event.error is None
    assert event.output is not None
    assert (fake.num_pins, fake.is_closed) == (0, True)


async def test_a_base_whose_blob_was_missing_is_served_once_it_is_there(
    link: Link, blobs: Path
) -> None:
    await link.put_base("good")
    base = await link.put_base("late")
    sha256 = base.files[2].sha256
    path = blobs / sha256[:2] / sha256
    data = path.read_bytes()
    path.unlink()
    await begin(link)
    assert base.digest not in link.executor.bases
    await asyncio.sleep(0.1)  # a few tries
    assert base.digest not in link.executor.bases
    path.write_bytes(data)
    await eventually(lambda: base.digest in link.executor.bases)


async def test_tries_are_further_and_further_apart(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_MAX_S", 0.16)
    tried: list[float] = []
    load = link.bases._load

    def counting(directory: Path, base: resources_pb2.Base) -> object:
        if base.name == "bad":
            tried.append(asyncio.run_coroutine_threadsafe(now(), loop).result())
        return load(directory, base)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(link.bases, "_load", counting)
    link.errors = {"bad": OSError("device")}
    await link.put_base("bad")
    good = await link.put_base("good")
    await begin(link)
    await eventually(lambda: len(tried) >= 7)
    gaps = [after - before for before, after in pairwise(tried)]
    assert gaps[0] < 0.1
    assert gaps[3] >= 0.15  # 20, 40, 80, then 160 ms
    assert set(link.executor.bases) == {good.digest}


async def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_base_that_can_never_be_read_is_not_tried_again(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_tries = 0
    load = link.bases._load

    def counting(directory: Path, base: resources_pb2.Base) -> object:
        nonlocal num_tries
        num_tries += base.name == "bad"
        return load(directory, base)

    monkeypatch.setattr(link.bases, "_load", counting)
    link.errors = {"bad": InvalidArgument("weights", "hold NaN")}
    await link.put_base("bad")
    link.begin(follow(link.follower, link.stub))
    with pytest.raises(FailedPrecondition, match="bad: weights"):
        await link.bases.start()
    link.begin(link.bases.run())
    good = await link.put_base("good")
    await eventually(lambda: good.digest in link.executor.bases)
    await asyncio.sleep(0.1)
    assert num_tries == 1


async def test_a_refused_base_that_is_deleted_is_forgotten(link: Link) -> None:
    link.errors = {"bad": OSError("device")}
    await link.put_base("good")
    bad = await link.put_base("bad")
    await begin(link)
    await delete(link, "bad")
    await eventually(lambda: bad.digest not in link.bases._refused)
    assert not link.bases.held_blobs & {file.sha256 for file in bad.files}
