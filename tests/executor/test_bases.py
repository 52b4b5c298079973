"""Bases leave with their deletion, and come once what was missing is there."""

from __future__ import annotations

import asyncio
import gc
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from hmi.pack import pack
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.follow import follow
from services.executor import bases as module
from services.executor.config import ExecutorSettings
from services.executor.engine.items import Event, Item, ModelKey
from services.executor.loading import Loader
from tests.executor.children import put_base
from tests.executor.fake_base import key
from tests.executor.test_store import Link, blobs, eventually, link, store
from tests.tiny import write_base, write_lora

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


async def test_the_same_files_come_back_under_another_name(link: Link) -> None:
    first = await link.put_base("first")
    await begin(link)
    await delete(link, "first")
    again = resources_pb2.Base()
    again.CopyFrom(first)
    again.name = "again"
    await link.stub.PutBase(pb.PutBaseRequest(base=again))
    later = await link.put_base("later")
    await eventually(lambda: set(link.executor.bases) == {first.digest, later.digest})


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
    await eventually(lambda: fake.is_closed)  # on a thread, after it is out of sight
    [event] = sink.events
    assert event.error is None
    assert event.output is not None
    assert fake.num_pins == 0


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
    expected = (0.02, 0.04, 0.08, 0.16, 0.16)
    assert all(gap >= least - 0.005 for gap, least in zip(gaps, expected, strict=False))
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


async def test_a_real_base_that_has_answered_gives_its_memory_back(
    link: Link, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = ExecutorSettings(
        knowledge_address="unused", cache_dir=tmp_path, device="cpu", dtype="float32"
    )
    loader = Loader(settings, link.files, link.executor.dispatcher.wake)
    monkeypatch.setattr(link.bases, "_load", loader.load)
    directory = write_base(tmp_path / "written")
    names = ("config.json", "tokenizer.json", "model.safetensors")
    files = {name: (directory / name).read_bytes() for name in names}
    base = await put_base(link.stub, "tiny", files, max_tokens=64)
    version = await link.blobs.write(pack(write_lora(tmp_path / "lora", 1)))
    await begin(link)
    await eventually(lambda: base.digest in link.executor.bases)
    held = link.executor.bases[base.digest]
    memory = [weakref.ref(part) for part in (held.encoder, held.adapters, held.heads)]
    del held
    assert taken("tiny") == settings.device_adapter_bytes

    sink = Sink()
    item = Item(1, ModelKey("acme", "topic", 1, version, base.digest), np.array([2, 5, 3]))
    link.executor.dispatcher.submit([(7, item)], sink)
    await eventually(lambda: len(sink.events) == 1)
    assert sink.events[0].output is not None
    await delete(link, "tiny")
    await eventually(lambda: link.executor.bases == {})
    await eventually(lambda: gc.collect() >= 0 and [part() for part in memory] == [None] * 3)
    assert taken("tiny") is None


def taken(base: str) -> float | None:
    """Device memory that the base's adapters are said to have, in bytes."""
    return REGISTRY.get_sample_value("hmi_device_bytes", {"base": base, "kind": "adapters"})
