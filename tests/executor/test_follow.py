"""A view of the store's resources, change by change."""

from __future__ import annotations

from hmi.admin.v1 import resources_pb2
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.executor.engine.items import ModelKey
from services.executor.follow import Follower, View


def model(*versions: int, pinned: bool = True, deleted: bool = False) -> pb.Change:
    traffic = [resources_pb2.TrafficTarget(version=number, percent=50) for number in versions]
    message = resources_pb2.Model(tenant="acme", name="topic", pinned=pinned, traffic=traffic)
    return pb.Change(model=message, is_deleted=deleted)


def version(number: int, deleted: bool = False) -> pb.Change:
    message = resources_pb2.Version(
        tenant="acme", model="topic", number=number, digest=f"v{number}", base_digest="base"
    )
    return pb.Change(version=message, is_deleted=deleted)


def pins(*changes: pb.Change) -> set[ModelKey]:
    view = View()
    for change in changes:
        view.apply(change)
    return set(view.pins)


def pinned_key(number: int) -> ModelKey:
    return ModelKey("acme", "topic", number, f"v{number}", "base")


def test_pinned_models_pin_the_versions_that_get_traffic() -> None:
    assert pins(version(1), version(2), version(3), model(1, 3)) == {pinned_key(1), pinned_key(3)}


def test_a_version_told_after_its_model_is_pinned_too() -> None:
    assert pins(model(1), version(1)) == {pinned_key(1)}


def test_unpinned_and_deleted_models_and_versions_pin_nothing() -> None:
    assert pins(version(1), model(1), model(1, pinned=False)) == set()
    assert pins(version(1), model(1), model(deleted=True)) == set()
    assert pins(version(1), model(1), version(1, deleted=True)) == set()


def test_what_a_new_snapshot_lacks_was_deleted() -> None:
    old, new = View(), View()
    for change in (version(1), version(2), version(3), version(3, deleted=True)):
        old.apply(change)
    for change in (version(2), version(4)):
        new.apply(change)
    new.succeed(old)
    assert {key.version for key in new.take_deleted()} == {1, 3}
    assert new.take_deleted() == []


def test_a_follower_that_gets_a_new_snapshot_tells_what_was_deleted_meanwhile() -> None:
    follower = Follower()
    for changes in ([version(1), version(2)], [version(2)]):
        follower.interrupted()
        follower.apply(
            pb.WatchResponse(changes=changes, is_snapshot=True, is_snapshot_end=True, revision=1)
        )
    assert follower.view.take_deleted() == [pinned_key(1)]


def test_bases_come_and_go() -> None:
    view = View()
    view.apply(pb.Change(base=resources_pb2.Base(name="minilm", digest="d")))
    assert view.bases["minilm"].digest == "d"
    view.apply(pb.Change(base=resources_pb2.Base(name="minilm"), is_deleted=True))
    assert view.bases == {}


def domain(path: str, table_version: str, deleted: bool = False) -> pb.Change:
    message = resources_pb2.Domain(base="hminilm", path=path, table_version=table_version)
    return pb.Change(domain=message, is_deleted=deleted)


def test_new_tables_are_told_with_those_they_follow_and_once() -> None:
    view = View()
    for change in (
        domain("", ""), domain("", "a"), domain("", "a"), domain("news", "b"),
        domain("", "c"), domain("news", "d"), domain("news", "d", deleted=True),
    ):  # fmt: skip
        view.apply(change)
    assert view.take_swaps() == [("hminilm", "a", "c"), ("hminilm", "b", "d")]
    assert view.take_swaps() == []


def test_tables_that_changed_unseen_are_told_after_the_next_snapshot() -> None:
    follower = Follower()
    for changes in ([domain("", "a"), domain("news", "b")], [domain("", "c"), domain("x", "d")]):
        follower.interrupted()
        follower.apply(
            pb.WatchResponse(changes=changes, is_snapshot=True, is_snapshot_end=True, revision=1)
        )
    assert follower.view.take_swaps() == [("hminilm", "a", "c")]
