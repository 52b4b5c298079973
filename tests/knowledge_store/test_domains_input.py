"""What is refused of domains, counts, splits and written rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from grpc import StatusCode

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as dpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from services.common import array_blob
from services.common.ngram_counts import keys_from_bytes
from services.knowledge_store.domains import key_blobs
from tests.knowledge_store.domain_worlds import (
    TOKENIZER,
    VOCAB,
    add_split_base,
    complete,
    counts_blob,
    create_domain,
    do_all_work,
    key,
    lease,
    rows_of,
    split_base,
    stats,
    update,
    write_segment,
)
from tests.knowledge_store.stores import (
    Store,
    add_base,
    add_tenant,
    create,
    fails,
    new_version,
    running,
    sha256,
)

COUNTS = {key(5, 6, 7): 4}


def described(**metadata: Any) -> dict[str, Any]:
    return {
        "format": "hmi.ngram_counts/1", "num_tokens": 4, "tokenizer_digest": sha256(TOKENIZER)
    } | metadata  # fmt: skip


def blob(keys: Any, counts: Any, **metadata: Any) -> bytes:
    arrays = {"keys": np.array(keys, np.int64), "counts": np.array(counts, np.int64)}
    return array_blob.to_bytes(arrays, described(**metadata))


BAD_COUNTS = {
    "no container": b"not safetensors",
    "empty": b"",
    "cut": counts_blob(COUNTS)[:-3],
    "a header that lies about its size": (1 << 62).to_bytes(8, "little") + b"{}",
    "of another format": blob([key(5, 6, 7)], [4], format="hmi.other/1"),
    "of another tokenizer": counts_blob(COUNTS, b"another tokenizer"),
    "not ascending": blob([key(5, 6, 7), key(1, 2, 3)], [4, 4]),
    "named twice": blob([key(5, 6, 7)] * 2, [4, 4]),
    "of no centre": blob([key(5, 0, 7)], [4]),
    "negative": blob([key(5, 6, 7)], [-4]),
    "of tokens beyond the vocabulary": blob([key(5, VOCAB + 1, 7)], [4]),
    "of other lengths": array_blob.to_bytes(
        {"keys": np.array([key(5, 6, 7)]), "counts": np.array([1, 2])}, described()
    ),
    "of other numbers": array_blob.to_bytes(
        {"keys": np.array([key(5, 6, 7)]), "counts": np.array([1.0], np.float32)}, described()
    ),
}


async def test_counts_that_are_none_are_refused(store: Store) -> None:
    await add_split_base(store)
    for data in BAD_COUNTS.values():
        await store.blobs.write(data)
        request = dpb.CreateDomainRequest(
            domain=rpb.Domain(base="hminilm", path="news"), counts_sha256=sha256(data)
        )
        await fails(store.stub.CreateDomain(request), StatusCode.INVALID_ARGUMENT)
    assert set(await stats(store)) == {""}


async def test_counts_too_large_to_plan_with_are_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_split_base(store)
    monkeypatch.setattr(key_blobs, "MAX_COUNTS_BYTES", 64)
    await fails(create_domain(store, "news", COUNTS), StatusCode.RESOURCE_EXHAUSTED)
    assert set(await stats(store)) == {""}


BAD_PATHS = ["", "/", "news/", "/news", "a//b", "../x", "a/../b", "News", "a b", "a\x00", "é"]
BAD_PATHS += ["a/" * 8 + "a", "a" * 64, "a\\b", "news/..", "a." * 200]


async def test_a_path_is_names_and_nothing_else(store: Store) -> None:
    await add_split_base(store)
    for path in BAD_PATHS:
        await fails(create_domain(store, path), StatusCode.INVALID_ARGUMENT)


BAD_SETTINGS: list[dict[str, Any]] = [
    {"alpha": 1.5}, {"alpha": -0.1}, {"alpha": float("nan")}, {"miss_policy": 9},
    {"tenant": "../x"}, {"encoder_sha256": "../x"}, {"byte_budget": 1 << 60}, {"base": "X"},
]  # fmt: skip


async def test_settings_out_of_bounds_are_refused(store: Store) -> None:
    await add_split_base(store)
    for fields in BAD_SETTINGS:
        await fails(create_domain(store, "news", **fields), StatusCode.INVALID_ARGUMENT)


async def test_what_a_domain_needs_must_be_there(store: Store) -> None:
    await add_split_base(store)
    await add_base(store)
    await fails(create_domain(store, "news", base="other"), StatusCode.NOT_FOUND)
    await fails(create_domain(store, "news", base="minilm"), StatusCode.FAILED_PRECONDITION)
    await fails(create_domain(store, "news/sport"), StatusCode.NOT_FOUND)
    await fails(create_domain(store, "nobody", tenant="nobody"), StatusCode.NOT_FOUND)
    missing = create_domain(store, "news", encoder_sha256=sha256(b"missing"))
    await fails(missing, StatusCode.FAILED_PRECONDITION)
    request = dpb.CreateDomainRequest(
        domain=rpb.Domain(base="hminilm", path="news"), counts_sha256=sha256(b"missing")
    )
    await fails(store.stub.CreateDomain(request), StatusCode.FAILED_PRECONDITION)
    await create_domain(store, "news")
    await fails(create_domain(store, "news"), StatusCode.ALREADY_EXISTS)


async def test_a_request_sent_again_is_answered_as_it_was(store: Store) -> None:
    await add_split_base(store)
    request = dpb.CreateDomainRequest(
        domain=rpb.Domain(base="hminilm", path="news"), request_id="r1"
    )
    first = await store.stub.CreateDomain(request)
    assert await store.stub.CreateDomain(request) == first
    request.request_id = "r2"
    await fails(store.stub.CreateDomain(request), StatusCode.ALREADY_EXISTS)


async def test_another_tenants_domain_is_not_there(store: Store) -> None:
    await add_split_base(store)
    await add_tenant(store, "a")
    await add_tenant(store, "b")
    await create_domain(store, "news")
    await create_domain(store, "a", tenant="a")
    await fails(create_domain(store, "a/mine", tenant="b"), StatusCode.NOT_FOUND)
    # Taken or not, shared or not: the refusal is the same.
    refusals = [
        await fails(create_domain(store, path, tenant="b"), StatusCode.INVALID_ARGUMENT)
        for path in ("a", "news", "free")
    ]
    assert len({error.message for error in refusals}) == 1
    await fails(create_domain(store, "free/b", tenant="b"), StatusCode.NOT_FOUND)
    await create_domain(store, "news/b", tenant="b")
    # An admin's child of a tenant's domain is the tenant's.
    assert (await create_domain(store, "a/theirs")).tenant == "a"


async def test_what_is_in_use_is_not_deleted(store: Store) -> None:
    base = await add_split_base(store)
    await add_tenant(store)
    await create_domain(store, "news")
    await create_domain(store, "news/sport")
    await do_all_work(store, base)

    async def delete(path: str) -> Any:
        return await store.stub.DeleteDomain(dpb.DeleteDomainRequest(base="hminilm", path=path))

    await fails(delete(""), StatusCode.FAILED_PRECONDITION)
    await fails(delete("news"), StatusCode.FAILED_PRECONDITION)
    await fails(delete("gone"), StatusCode.NOT_FOUND)
    await fails(delete("../news"), StatusCode.NOT_FOUND)
    await delete("news/sport")
    await delete("news")
    await fails(update(store, "news"), StatusCode.NOT_FOUND)
    roll_back = dpb.RollBackDomainRequest(base="hminilm", path="news")
    await fails(store.stub.RollBackDomain(roll_back), StatusCode.NOT_FOUND)
    await fails(
        store.stub.SetDomain(dpb.SetDomainRequest(base="hminilm", path="news", alpha=0.1)),
        StatusCode.NOT_FOUND,
    )


async def test_trees_and_tenants_have_so_many_domains(tmp_path: Any) -> None:
    async with running(tmp_path, max_domains=4, max_tenant_domains=1) as store:
        await add_split_base(store)
        await add_tenant(store, "a")
        await create_domain(store, "a", tenant="a")
        await fails(create_domain(store, "a/two"), StatusCode.RESOURCE_EXHAUSTED)
        await create_domain(store, "one")
        await create_domain(store, "two")
        await fails(create_domain(store, "three"), StatusCode.RESOURCE_EXHAUSTED)


async def test_an_unsplit_bases_version_has_no_domain(store: Store) -> None:
    base = await add_base(store)
    await add_tenant(store)
    await store.blobs.write(b"adapter")
    new = new_version(base, b"adapter")
    new.version.domain = "news"
    (made,) = await create(store, new)
    assert made.error_code == StatusCode.INVALID_ARGUMENT.value[0]
    new.version.domain, new.version.table_version = "", "f" * 64
    (made,) = await create(store, new)
    assert made.version.table_version == ""


async def test_a_split_that_contradicts_its_files_is_refused(store: Store) -> None:
    for split in (
        {"form": rpb.FORM_UNSPECIFIED},
        {"layer": 0},
        {"unsplit_digest": sha256(b"x")},
        {"layer": 4},
        {"encoder_sha256": sha256(b"x")},
    ):
        await fails(add_split_base(store, **split), StatusCode.INVALID_ARGUMENT)


async def test_a_split_base_needs_its_files(store: Store) -> None:
    base, files = split_base()
    missing = store.stub.PutBase(pb.PutBaseRequest(base=base))
    await fails(missing, StatusCode.FAILED_PRECONDITION)
    for data in files.values():
        await store.blobs.write(data)
    bare = rpb.Base()
    bare.CopyFrom(base)
    del bare.files[-1]
    await fails(store.stub.PutBase(pb.PutBaseRequest(base=bare)), StatusCode.INVALID_ARGUMENT)
    await store.stub.PutBase(pb.PutBaseRequest(base=base))
    await store.stub.PutBase(pb.PutBaseRequest(base=base))
    assert (await stats(store))[""].domain.table_number == 0


async def test_rows_that_are_not_those_asked_for_are_refused(store: Store) -> None:
    base = await add_split_base(store)
    work = await lease(store, base)
    assert work is not None
    keys = keys_from_bytes(await store.blobs.read(work.keys_sha256))
    # What an executor computes in is its own affair; a segment may also say nothing of it.
    good = await write_segment(store, work, keys, dtype="bfloat16")
    half = [await write_segment(store, work, part) for part in (keys[:20], keys[20:])]

    def changed(**fields: Any) -> rpb.Segment:
        segment = rpb.Segment()
        segment.CopyFrom(good)
        for name, value in fields.items():
            setattr(segment, name, value)
        return segment

    foreign = await write_segment(store, work, keys, encoder_sha256=sha256(b"x"))
    junk = await store.blobs.write(b"junk")
    refused = [
        [], half[:1], half[::-1], [good, good], [foreign], [changed(order=3)],
        [changed(is_removal=True)], [changed(num_entries=3)], [changed(size_bytes=3)],
        [changed(sha256=junk, size_bytes=4)], [changed(sha256="../x")],
    ]  # fmt: skip
    for segments in refused:
        await fails(complete(store, work, segments), StatusCode.INVALID_ARGUMENT)
    missing = complete(store, work, [changed(sha256=sha256(b"missing"))])
    await fails(missing, StatusCode.FAILED_PRECONDITION)
    stale = dpb.Work()
    stale.CopyFrom(work)
    stale.expected_version = 7
    await fails(complete(store, stale, [good]), StatusCode.ABORTED)
    stale.CopyFrom(work)
    stale.lease_token = "guess"
    await fails(complete(store, stale, [good]), StatusCode.ABORTED)
    stale.lease_token = ""
    await fails(complete(store, stale, [good]), StatusCode.ABORTED)
    assert not await complete(store, work, half)
    assert await do_all_work(store, base) == 1


async def test_work_is_for_executors_of_its_base(store: Store) -> None:
    base = await add_split_base(store)
    other = rpb.Base(digest=sha256(b"other"))
    assert await lease(store, other) is None
    await fails(lease(store, rpb.Base(digest="../x")), StatusCode.INVALID_ARGUMENT)
    await fails(lease(store, base, executor=""), StatusCode.INVALID_ARGUMENT)
    assert await lease(store, base, "e1", "no-such-work") is None
    held = await lease(store, base)
    assert held is not None
    assert await lease(store, base, "e2", held.work_id) is None
    assert await rows_of(store, held)
