"""Finding keys: the fast index against binary search, and the cache that shares its buckets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.executor.plot import index
from services.executor.plot.cache import RowCache, RowCaches
from services.executor.plot.index import ABSENT, BucketIndex, SortedIndex
from tests.executor.plot_trees import ROW_SHAPE, rows_of

numbers = st.integers(1, 1 << 63 - 1)
key_sets = st.frozensets(st.integers(1, 200) | st.integers(1, (1 << 63) - 1), max_size=200)


def ascending(keys: frozenset[int]) -> np.ndarray:
    return np.array(sorted(keys), np.int64)


def colliding(num: int, num_buckets: int) -> np.ndarray:
    """Keys of one bucket."""
    candidates = np.arange(1, 40 * num * num_buckets, dtype=np.int64)
    return candidates[index.bucket_of(candidates, num_buckets) == 0][:num]


@settings(deadline=None)
@given(key_sets, st.lists(st.integers(1, 300), max_size=50))
def test_buckets_find_what_a_dictionary_holds(keys: frozenset[int], others: list[int]) -> None:
    held = ascending(keys)
    queries = np.array([*held, *others], np.int64)
    where = {int(key): number for number, key in enumerate(held)}
    expected = [where.get(int(query), ABSENT) for query in queries]
    assert BucketIndex(held).find(queries).tolist() == expected
    assert SortedIndex(held).find(queries).tolist() == expected


@pytest.mark.parametrize("num", [9, 40, 300])
def test_keys_chosen_to_share_a_bucket_are_found_all_the_same(num: int) -> None:
    keys = colliding(num, -(-num // 4))
    assert len(keys) == num
    found = BucketIndex(keys)
    assert found.find(keys).tolist() == list(range(num))
    assert (found.find(keys + 1)[~np.isin(keys + 1, keys)] == ABSENT).all()


@pytest.mark.parametrize("num_keys", [0, 1, 50_000])
def test_many_queries_are_answered_as_by_binary_search(num_keys: int) -> None:
    chance = np.random.default_rng(0)
    keys = np.unique(chance.integers(1, 1 << 63, num_keys))
    own = chance.permutation(len(keys)).astype(np.int32)
    queries = np.concatenate([chance.permutation(keys), chance.integers(1, 1 << 63, 20_000)])
    fast, simple = BucketIndex(keys, own), SortedIndex(keys, own)
    assert (fast.find(queries) == simple.find(queries)).all()
    assert len(fast) == len(keys)
    assert fast.size_bytes >= 16 * num_keys


@settings(deadline=None)
@given(st.lists(st.frozensets(st.integers(1, 400), max_size=40), max_size=12), st.integers(1, 64))
def test_a_cache_returns_only_what_was_put_and_keeps_its_bound(
    puts: list[frozenset[int]], num_rows: int
) -> None:
    cache = RowCache(num_rows, ROW_SHAPE)
    everything = np.arange(1, 401)
    for step, keys in enumerate(puts):
        wanted = ascending(keys)
        hits, rows = cache.find(wanted)
        assert (rows == rows_of(wanted[hits], 5)).all()
        missing = np.delete(wanted, hits)
        cache.put(missing, rows_of(missing, 5))
        if step == 0 and len(keys) == 1:
            assert cache.find(wanted)[0].tolist() == [0]
        assert len(cache.find(everything)[0]) <= -(-num_rows // 8) * 8


def test_a_full_cache_drops_what_was_used_longest_ago() -> None:
    cache = RowCache(8, ROW_SHAPE)
    keys = np.arange(1, 9)
    cache.put(keys, rows_of(keys, 5))
    cache.find(keys[1:])
    cache.put(np.array([99]), rows_of(np.array([99]), 5))
    assert cache.find(np.array([1, 2, 8, 99]))[0].tolist() == [1, 2, 3]


def test_tenants_do_not_find_each_others_rows_and_the_total_is_bounded() -> None:
    row_bytes = 2 * ROW_SHAPE[0] * ROW_SHAPE[1]
    caches = RowCaches(ROW_SHAPE, total_bytes=2 * 64 * row_bytes, tenant_bytes=64 * row_bytes)
    keys = np.array([3, 5])
    rows = rows_of(keys, 5)
    caches.put("acme", "encoder", keys, rows)
    assert len(caches.find("beta", "encoder", keys)[0]) == 0
    assert len(caches.find("acme", "other", keys)[0]) == 0
    hits, found = caches.find("acme", "encoder", keys)
    assert (hits.tolist(), (found == rows).all()) == ([0, 1], True)
    caches.put("beta", "encoder", keys, rows)
    caches.put("carol", "encoder", keys, rows)
    assert len(caches.find("acme", "encoder", keys)[0]) == 0  # the longest unserved


def test_a_tenant_of_many_encoders_drops_its_own_caches() -> None:
    row_bytes = 2 * ROW_SHAPE[0] * ROW_SHAPE[1]
    caches = RowCaches(ROW_SHAPE, total_bytes=4 * 64 * row_bytes, tenant_bytes=64 * row_bytes)
    keys = np.arange(1, 9)
    caches.put("quiet", "encoder", keys, rows_of(keys, 1))
    for encoder in "abcdef":
        caches.put("many", encoder, keys, rows_of(keys, 2))
    assert len(caches.find("quiet", "encoder", keys)[0]) == 8
    kept = [encoder for encoder in "abcdef" if len(caches.find("many", encoder, keys)[0])]
    assert kept == ["d", "e", "f"]


def test_a_cache_without_room_keeps_nothing() -> None:
    for total, tenant in ((0, 0), (0, 1 << 10), (1 << 10, 0)):
        caches = RowCaches(ROW_SHAPE, total_bytes=total, tenant_bytes=tenant)
        caches.put("acme", "encoder", np.array([3]), rows_of(np.array([3]), 5))
        assert len(caches.find("acme", "encoder", np.array([3]))[0]) == 0
