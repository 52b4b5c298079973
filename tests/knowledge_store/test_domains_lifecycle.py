"""Domains from their creation to answers: plan, lease, rows, commit, and back."""

from __future__ import annotations

import json

from grpc import StatusCode

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as dpb
from hmi.knowledge.v1 import knowledge_pb2 as pb
from tests.knowledge_store.domain_worlds import (
    HIDDEN,
    VOCAB,
    add_split_base,
    complete,
    create_domain,
    do_all_work,
    key,
    lease,
    rows_of,
    stats,
    table,
    update,
)
from tests.knowledge_store.stores import (
    Store,
    View,
    add_tenant,
    create,
    fails,
    follow,
    new_version,
    sha256,
)

SPORT = {key(5, 6, 7): 10, key(6, 7, 8): 10, key(5, 6, 0): 6, key(9, 9, 9): 1}


def domain_of(view: View, path: str) -> rpb.Domain:
    return rpb.Domain.FromString(view.resources["domain", f"hminilm/{path}"])


async def test_a_split_base_begins_with_every_token_and_its_keys(store: Store) -> None:
    base = await add_split_base(store)
    before = (await stats(store))[""]
    assert before.domain.is_updating
    assert before.domain.table_version == ""
    # One piece of work an order, parents' and lower orders' first.
    assert await do_all_work(store, base) == 2
    root = (await stats(store))[""]
    assert list(root.num_entries) == [VOCAB, 0, 1]
    assert (root.domain.table_number, root.domain.is_updating) == (1, False)
    rows = await table(store, root.domain.table_version)
    assert set(rows[""]) == {key(0, n + 1, 0) for n in range(VOCAB)} | {key(1, 2, 3)}


async def test_a_domain_is_made_from_its_corpus_and_seen_by_watchers(store: Store) -> None:
    base = await add_split_base(store)
    await do_all_work(store, base)
    made = await create_domain(store, "news", SPORT, alpha=0.6)
    assert (made.is_updating, made.table_version, made.table_number) == (True, "", 0)
    view = View()
    await follow(store, view, lambda view: "hminilm/news" in view["domain"])
    assert await do_all_work(store, base) == 2
    await follow(store, view, lambda view: not domain_of(view, "news").is_updating)
    news = domain_of(view, "news")
    rows = await table(store, news.table_version)
    # Of 21 trigrams' occurrences 60 % are 12.6: the two most frequent. What came once never.
    assert set(rows["news"]) == {key(5, 6, 7), key(6, 7, 8), key(5, 6, 0)}
    assert list(rows) == ["", "news"]
    manifest = json.loads(await store.blobs.read(news.table_version))
    assert manifest["miss_policy"] == "backoff"
    assert manifest["base_digest"] == base.digest
    held = (await stats(store))["news"]
    assert list(held.num_entries) == [0, 1, 2]
    assert held.flat_bytes == (VOCAB + 1 + 3) * (8 + 2 * HIDDEN)


async def test_a_child_stores_only_what_its_ancestors_lack_or_encode_differently(
    store: Store,
) -> None:
    base = await add_split_base(store)
    await create_domain(store, "news", SPORT, alpha=1.0)
    other = await store.blobs.write(b"another encoder")
    await create_domain(store, "news/sport", {key(5, 6, 7): 3, key(8, 8, 8): 3}, alpha=1.0)
    await create_domain(
        store, "news/art", {key(5, 6, 7): 3, key(0, 4, 0): 3}, alpha=1.0, encoder_sha256=other
    )
    # Planned before anything was done: what is planned above counts as held.
    await do_all_work(store, base)
    nodes = {path: node.domain for path, node in (await stats(store)).items()}
    sport = await table(store, nodes["news/sport"].table_version)
    assert set(sport["news/sport"]) == {key(8, 8, 8)}
    art = await table(store, nodes["news/art"].table_version)
    assert art["news/art"] == {key(5, 6, 7): other, key(0, 4, 0): other}


async def test_a_child_waits_for_its_parents_first_table(store: Store) -> None:
    base = await add_split_base(store)
    await create_domain(store, "news", SPORT)
    work = [await lease(store, base, f"e{n}") for n in range(5)]
    assert work[4] is None
    *root, bigrams, trigrams = [w for w in work if w is not None]
    assert [w.path for w in root] == ["", ""]
    for piece in (bigrams, trigrams):
        assert not await complete(store, piece, await rows_of(store, piece))
    assert (await stats(store))["news"].domain.table_version == ""
    assert not await complete(store, root[0], await rows_of(store, root[0]))
    assert await complete(store, root[1], await rows_of(store, root[1]))
    news = (await stats(store))["news"].domain
    assert (news.table_number, news.is_updating) == (1, False)
    assert set(await table(store, news.table_version)) == {"", "news"}


async def test_a_domain_without_a_corpus_answers_from_its_parent_at_once(store: Store) -> None:
    base = await add_split_base(store)
    empty = await create_domain(store, "empty")
    assert empty.table_version == ""
    await do_all_work(store, base)
    held = (await stats(store))["empty"].domain
    assert (held.table_number, held.is_updating) == (0, False)
    assert (await table(store, held.table_version))["empty"] == {}


async def test_siblings_share_what_both_want_in_their_parent(store: Store) -> None:
    base = await add_split_base(store, root={key(1, 2, 3): 1000})
    await create_domain(store, "news")
    await create_domain(store, "news/a", {key(5, 5, 5): 9, key(6, 6, 6): 8}, alpha=1.0)
    await create_domain(store, "news/b", {key(6, 6, 6): 8, key(7, 7, 7): 40}, alpha=1.0)
    await do_all_work(store, base)
    dry = await update(store, dry=True)
    assert dry.update_id == ""
    news = next(c for c in dry.changes if (c.path, c.order) == ("news", 3))
    assert (news.num_added, news.num_promoted) == (1, 1)
    started = await update(store)
    assert started.update_id
    assert list(started.changes) == list(dry.changes)
    assert (await stats(store))["news"].domain.is_updating
    await fails(
        store.stub.UpdateDomains(dpb.UpdateDomainsRequest(base="hminilm")),
        StatusCode.FAILED_PRECONDITION,
    )
    await do_all_work(store, base)
    nodes = {path: node.domain for path, node in (await stats(store)).items()}
    a = await table(store, nodes["news/a"].table_version)
    b = await table(store, nodes["news/b"].table_version)
    # Half of all occurrences below the root is one n-gram's: the root itself covers it.
    assert set(a[""]) == {key(0, n + 1, 0) for n in range(VOCAB)} | {key(1, 2, 3), key(7, 7, 7)}
    assert set(a["news"]) == set(b["news"]) == {key(6, 6, 6)}
    assert set(a["news/a"]) == {key(5, 5, 5)}
    assert b["news/b"] == {}
    # Settled: nothing more to do.
    assert (await update(store)).update_id == ""


async def test_a_roll_back_returns_to_the_rows_before_and_again_to_those_after(
    store: Store,
) -> None:
    base = await add_split_base(store, root={key(1, 2, 3): 1000})
    await create_domain(store, "news")
    await create_domain(store, "news/a", {key(5, 5, 5): 9, key(6, 6, 6): 8}, alpha=1.0)
    await create_domain(store, "news/b", {key(6, 6, 6): 8, key(7, 7, 7): 40}, alpha=1.0)
    await do_all_work(store, base)
    request = dpb.RollBackDomainRequest(base="hminilm", path="news/b")
    await fails(store.stub.RollBackDomain(request), StatusCode.FAILED_PRECONDITION)
    await update(store)
    await fails(store.stub.RollBackDomain(request), StatusCode.FAILED_PRECONDITION)
    await do_all_work(store, base)
    after = (await stats(store))["news/b"].domain
    back = (await store.stub.RollBackDomain(request)).domain
    assert back.table_number == after.table_number + 1
    rows = await table(store, back.table_version)
    assert set(rows["news/b"]) == {key(6, 6, 6), key(7, 7, 7)}
    again = (await store.stub.RollBackDomain(request)).domain
    assert list(again.segments) == list(after.segments)


async def test_a_version_is_tied_to_its_domains_table(store: Store) -> None:
    base = await add_split_base(store)
    await add_tenant(store)
    await add_tenant(store, "beta")
    await store.blobs.write(b"adapter")
    pinned = new_version(base, b"adapter", "pinned")
    (early,) = await create(store, pinned)
    assert early.error_code == StatusCode.FAILED_PRECONDITION.value[0]
    await create_domain(store, "acme", SPORT, tenant="acme")
    await do_all_work(store, base)
    acme = (await stats(store))["acme"].domain
    root = (await stats(store))[""].domain
    (on_root,) = await create(store, pinned)
    assert (on_root.version.domain, on_root.version.table_version) == ("", root.table_version)
    own = new_version(base, b"adapter", "own")
    own.version.domain, own.version.follow = "acme", True
    (on_own,) = await create(store, own)
    assert (on_own.version.follow, on_own.version.table_version) == (True, acme.table_version)
    stranger = new_version(base, b"adapter", "own", tenant="beta")
    stranger.version.domain = "acme"
    (refused,) = await create(store, stranger)
    assert refused.error_code == StatusCode.NOT_FOUND.value[0]
    held = (await stats(store))["acme"]
    assert (held.num_versions, held.version_bytes) == (1, len(b"adapter"))
    in_use = store.stub.DeleteDomain(dpb.DeleteDomainRequest(base="hminilm", path="acme"))
    await fails(in_use, StatusCode.FAILED_PRECONDITION)


async def test_a_policy_is_part_of_the_table_version_of_its_domain_alone(store: Store) -> None:
    base = await add_split_base(store)
    await create_domain(store, "news")
    await create_domain(store, "news/a")
    await do_all_work(store, base)
    before = await stats(store)
    request = dpb.SetDomainRequest(
        base="hminilm", path="news", miss_policy=rpb.MISS_POLICY_COMPUTE, alpha=0.25
    )
    changed = (await store.stub.SetDomain(request)).domain
    assert changed.alpha == 0.25
    manifest = json.loads(await store.blobs.read(changed.table_version))
    assert manifest["miss_policy"] == "compute"
    assert changed.table_version != before["news"].domain.table_version
    after = await stats(store)
    assert after["news/a"].domain == before["news/a"].domain


async def test_a_base_goes_with_its_tree_and_a_tenant_with_its_domains(store: Store) -> None:
    await add_split_base(store)
    await add_tenant(store)
    await create_domain(store, "news")
    await create_domain(store, "acme", tenant="acme")
    await create_domain(store, "acme/own", SPORT)
    nodes = await stats(store)
    assert nodes["acme/own"].domain.tenant == "acme"
    await store.stub.DeleteTenant(pb.DeleteTenantRequest(tenant="acme"))
    assert set(await stats(store)) == {"", "news"}
    await store.stub.DeleteBase(pb.DeleteBaseRequest(name="hminilm"))
    view = View()
    await follow(store, view, lambda _: True)
    assert view["domain"] == []
    assert (await lease(store, (await add_split_base(store)))) is not None


async def test_a_deleted_leaf_leaves_no_work(store: Store) -> None:
    base = await add_split_base(store)
    await do_all_work(store, base)
    await create_domain(store, "news", SPORT)
    work = await lease(store, base)
    assert work is not None
    segments = await rows_of(store, work)
    await store.stub.DeleteDomain(dpb.DeleteDomainRequest(base="hminilm", path="news"))
    await fails(complete(store, work, segments), StatusCode.ABORTED)
    assert await lease(store, base) is None
    again = await create_domain(store, "news", SPORT)
    assert again.create_time != rpb.Domain().create_time
    assert sha256(b"an encoder") == again.encoder_sha256
