"""Bases, versions, traffic and deletion over RPC, with every documented error."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest
from grpc import StatusCode

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from tests.knowledge_store.stores import (
    Store,
    add_base,
    add_tenant,
    base_of,
    create,
    fails,
    new_version,
    push,
    sha256,
    snapshot,
)

NAMED: dict[str, Any] = {"tenant": "acme", "model": "topics"}
NOBODY: dict[str, Any] = {"tenant": "other", "model": "topics"}


def traffic(*targets: tuple[int, int]) -> list[rpb.TrafficTarget]:
    return [rpb.TrafficTarget(version=version, percent=percent) for version, percent in targets]


@pytest.fixture
async def base(store: Store) -> Any:
    await add_tenant(store)
    return await add_base(store)


async def test_a_base_is_registered_once_and_answered_as_it_was(store: Store) -> None:
    first = await add_base(store)
    assert first.HasField("create_time")
    assert await add_base(store) == first


async def test_another_digest_under_a_bases_name_is_already_exists(store: Store) -> None:
    await add_base(store)
    await store.blobs.write(b"other")
    other = pb.PutBaseRequest(base=base_of({"config.json": b"other"}))
    await fails(store.stub.PutBase(other), StatusCode.ALREADY_EXISTS)


async def test_a_base_has_one_name(store: Store) -> None:
    first = await add_base(store)
    again = rpb.Base()
    again.CopyFrom(first)
    again.name = "another"
    error = await fails(
        store.stub.PutBase(pb.PutBaseRequest(base=again)), StatusCode.ALREADY_EXISTS
    )
    assert "minilm" in error.message
    await store.stub.DeleteBase(pb.DeleteBaseRequest(name="minilm"))
    assert (await store.stub.PutBase(pb.PutBaseRequest(base=again))).base.name == "another"


async def test_a_base_whose_blob_is_missing_is_refused(store: Store) -> None:
    missing = pb.PutBaseRequest(base=base_of({"config.json": b"never written"}))
    await fails(store.stub.PutBase(missing), StatusCode.FAILED_PRECONDITION)


@pytest.mark.parametrize("name", ["../config.json", "a/b", ".hidden", ""])
async def test_a_base_file_with_a_path_in_its_name_is_refused(store: Store, name: str) -> None:
    request = pb.PutBaseRequest(base=base_of({name: b"x"}))
    await fails(store.stub.PutBase(request), StatusCode.INVALID_ARGUMENT)


async def test_a_base_whose_digest_is_not_its_files_is_refused(store: Store) -> None:
    base = base_of({"config.json": b"x"})
    base.digest = sha256(b"something else")
    request = pb.PutBaseRequest(base=base)
    await fails(store.stub.PutBase(request), StatusCode.INVALID_ARGUMENT)


async def test_a_base_is_deleted_only_when_no_version_uses_it(store: Store, base: Any) -> None:
    await push(store, base, b"one")
    deletion = pb.DeleteBaseRequest(name=base.name)
    await fails(store.stub.DeleteBase(deletion), StatusCode.FAILED_PRECONDITION)
    await store.stub.DeleteModel(pb.DeleteModelRequest(**NAMED))
    await store.stub.DeleteBase(deletion)
    await fails(store.stub.DeleteBase(deletion), StatusCode.NOT_FOUND)


async def test_versions_are_numbered_in_order_and_take_the_traffic(store: Store, base: Any) -> None:
    numbers = [(await push(store, base, data)).number for data in (b"one", b"two", b"three")]
    assert numbers == [1, 2, 3]
    model = rpb.Model.FromString((await snapshot(store)).resources["model", "acme/topics"])
    assert list(model.traffic) == traffic((3, 100))
    assert list(model.previous_traffic) == traffic((2, 100))
    assert model.last_version == 3


async def test_a_version_that_is_not_activated_gets_no_traffic(store: Store, base: Any) -> None:
    await push(store, base, b"one", no_activate=True)
    model = rpb.Model.FromString((await snapshot(store)).resources["model", "acme/topics"])
    assert not model.traffic


async def test_each_version_of_a_batch_has_its_own_error(store: Store, base: Any) -> None:
    await store.blobs.write(b"one")
    other_base = rpb.Base(name=base.name, digest=sha256(b"another"))
    created = await create(
        store,
        new_version(base, b"one", "a"),
        new_version(base, b"one", tenant="nobody"),
        new_version(rpb.Base(name="none", digest=base.digest), b"one"),
        new_version(other_base, b"one"),
        new_version(base, b"never written"),
        new_version(base, b"one", "../a"),
        new_version(base, b"one", "b"),
        new_version(base, b"one", "a"),
    )
    codes = [outcome.error_code for outcome in created]
    assert codes == [0, 5, 5, 9, 9, 3, 0, 0]
    assert [created[position].version.number for position in (0, 6, 7)] == [1, 1, 2]
    view = await snapshot(store)
    assert view["model"] == ["acme/a", "acme/b"]
    assert view["version"] == ["acme/a/1", "acme/a/2", "acme/b/1"]


async def test_a_size_that_is_not_the_blobs_is_refused(store: Store, base: Any) -> None:
    await store.blobs.write(b"one")
    new = new_version(base, b"one")
    new.version.size_bytes = 7
    (outcome,) = await create(store, new)
    assert outcome.error_code == StatusCode.INVALID_ARGUMENT.value[0]


async def test_the_model_quota_stops_new_models_but_not_new_versions(store: Store) -> None:
    base = await add_base(store)
    await add_tenant(store, max_models=2)
    await store.blobs.write(b"one")
    names = ["a", "b", "c", "a", "d"]
    created = await create(store, *(new_version(base, b"one", name) for name in names))
    exhausted = StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert [outcome.error_code for outcome in created] == [0, 0, exhausted, 0, exhausted]


async def test_a_request_id_makes_one_version_however_often_it_is_sent(
    store: Store, base: Any
) -> None:
    first = await push(store, base, b"one", request_id="r")
    new = new_version(base, b"one", request_id="r")
    twins = await create(store, new, new)
    calls = await asyncio.gather(*(create(store, new) for _ in range(10)))
    answers = [*twins, *(call[0] for call in calls)]
    assert all(answer.version == first for answer in answers)
    assert (await snapshot(store))["version"] == ["acme/topics/1"]
    await store.blobs.write(b"two")
    (other,) = await create(store, new_version(base, b"two", request_id="r"))
    assert other.error_code == StatusCode.INVALID_ARGUMENT.value[0]


async def test_numbers_are_not_used_again_after_deletion(store: Store, base: Any) -> None:
    for data in (b"one", b"two"):
        await push(store, base, data)
    await store.stub.DeleteModel(pb.DeleteModelRequest(**NAMED))
    assert not (await snapshot(store))["version"]
    assert (await push(store, base, b"one")).number == 3
    await push(store, base, b"two")
    await store.stub.SetTraffic(pb.SetTrafficRequest(**NAMED, traffic=traffic((3, 100))))
    await store.stub.DeleteVersion(pb.DeleteVersionRequest(**NAMED, version=4))
    assert (await push(store, base, b"one")).number == 5


async def test_a_thousand_versions_are_one_revision_and_fast(store: Store, base: Any) -> None:
    await store.blobs.write(b"one")
    before = (await snapshot(store)).revision
    news = [new_version(base, b"one", f"m{n}", request_id=f"r{n}") for n in range(1_000)]
    started = time.monotonic()
    created = await create(store, *news)
    assert time.monotonic() - started < 5
    assert not any(outcome.error_code for outcome in created)
    view = await snapshot(store)
    assert view.revision == before + 1
    assert len(view["version"]) == 1_000
    too_many = pb.CreateVersionsRequest(versions=[*news, news[0]])
    await fails(store.stub.CreateVersions(too_many), StatusCode.INVALID_ARGUMENT)


async def test_traffic_is_split_and_rolled_back_and_forth(store: Store, base: Any) -> None:
    for data in (b"one", b"two"):
        await push(store, base, data)
    split = traffic((1, 90), (2, 10))
    request = pb.SetTrafficRequest(**NAMED, traffic=split)
    model = (await store.stub.SetTraffic(request)).model
    assert list(model.traffic) == split
    # A retry of the same request must not lose what a rollback returns to.
    assert (await store.stub.SetTraffic(request)).model == model
    back = (await store.stub.RollBack(pb.RollBackRequest(**NAMED))).model
    assert (list(back.traffic), list(back.previous_traffic)) == (traffic((2, 100)), split)
    forth = (await store.stub.RollBack(pb.RollBackRequest(**NAMED))).model
    assert list(forth.traffic) == split


@pytest.mark.parametrize(
    "targets", [[], [(1, 99)], [(1, 101)], [(1, 100), (1, 0)], [(1, 50), (1, 50)]]
)
async def test_traffic_that_is_no_split_of_100_is_refused(
    store: Store, base: Any, targets: list[tuple[int, int]]
) -> None:
    await push(store, base, b"one")
    request = pb.SetTrafficRequest(**NAMED, traffic=traffic(*targets))
    await fails(store.stub.SetTraffic(request), StatusCode.INVALID_ARGUMENT)


async def test_there_is_nothing_to_roll_back_to_at_first_or_after_deletion(
    store: Store, base: Any
) -> None:
    request = pb.RollBackRequest(**NAMED)
    await push(store, base, b"one")
    await fails(store.stub.RollBack(request), StatusCode.FAILED_PRECONDITION)
    await push(store, base, b"two")
    await store.stub.DeleteVersion(pb.DeleteVersionRequest(**NAMED, version=1))
    await fails(store.stub.RollBack(request), StatusCode.FAILED_PRECONDITION)


async def test_a_version_that_gets_traffic_is_not_deleted(store: Store, base: Any) -> None:
    await push(store, base, b"one")
    request = pb.DeleteVersionRequest(**NAMED, version=1)
    await fails(store.stub.DeleteVersion(request), StatusCode.FAILED_PRECONDITION)


async def test_a_model_is_pinned_and_unpinned(store: Store, base: Any) -> None:
    await push(store, base, b"one")
    for pinned in (True, True, False):
        request = pb.SetPinnedRequest(**NAMED, pinned=pinned)
        assert (await store.stub.SetPinned(request)).model.pinned == pinned


async def test_what_another_tenant_has_or_nobody_has_is_not_found(store: Store, base: Any) -> None:
    await push(store, base, b"one")
    stub, whole = store.stub, traffic((1, 100))
    missing = traffic((9, 100))
    calls = [
        stub.SetTraffic(pb.SetTrafficRequest(**NOBODY, traffic=whole)),
        stub.SetTraffic(pb.SetTrafficRequest(**NAMED, traffic=missing)),
        stub.RollBack(pb.RollBackRequest(**NOBODY)),
        stub.SetPinned(pb.SetPinnedRequest(**NOBODY, pinned=True)),
        stub.DeleteVersion(pb.DeleteVersionRequest(**NOBODY, version=1)),
        stub.DeleteVersion(pb.DeleteVersionRequest(**NAMED, version=9)),
        stub.DeleteModel(pb.DeleteModelRequest(**NOBODY)),
    ]
    for call in calls:
        await fails(call, StatusCode.NOT_FOUND)


async def test_concurrent_pushes_to_one_model_never_share_a_number(store: Store, base: Any) -> None:
    versions = await asyncio.gather(
        *(push(store, base, f"blob {number}".encode()) for number in range(40))
    )
    assert sorted(version.number for version in versions) == list(range(1, 41))
