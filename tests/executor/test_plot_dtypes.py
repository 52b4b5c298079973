"""Under `compute` an answer never depends on which executor made the rows that a table holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.executor.miss_policy import MissPolicy
from services.executor.plot import (
    Result,
    Retriever,
    RowCaches,
    RowSource,
    Segment,
    SegmentKind,
    Table,
)
from tests.executor.plot_stores import CPU, ENCODER
from tests.executor.plot_trees import (
    BASE,
    ROW_SHAPE,
    Blobs,
    FakeEncoder,
    Part,
    new_loader,
    rows_of,
    unigrams,
    write_parts,
    write_version,
)

OWN, ANOTHERS = 3, 4  # seeds: what this executor computes, and what one of another dtype did
KEY = 2 << 21 | 3
REMOVED = Part(frozenset([KEY]), None)


def load(directory: Path, nodes: list[list[Part]], policy: MissPolicy) -> Table:
    blobs = Blobs(directory)
    version = write_version(blobs, [(ENCODER, parts) for parts in nodes], policy)
    loader = new_loader(blobs, {ENCODER: FakeEncoder(OWN)})
    return loader.table(version, loader.manifest(version))


def part(dtype: str) -> Part:
    return Part(frozenset([KEY]), OWN if dtype == "float32" else ANOTHERS, dtype)


def row_and_result(table: Table) -> tuple[np.ndarray, int]:
    """What the first token of two is given, whose n-gram is KEY."""
    caches = RowCaches(ROW_SHAPE, total_bytes=0, tenant_bytes=0)
    got = Retriever(ROW_SHAPE, CPU, caches).retrieve([1, 2], [2], [RowSource(table, "acme")])
    return got.values[0].numpy(), int(got.results[0])


@pytest.mark.parametrize("dtype", ["bfloat16", ""])
def test_rows_of_another_or_an_unknown_dtype_do_not_hit_under_compute(
    tmp_path: Path, dtype: str
) -> None:
    row, result = row_and_result(load(tmp_path, [[part(dtype)]], MissPolicy.COMPUTE))
    assert result == Result.COMPUTED
    np.testing.assert_array_equal(row, rows_of(np.array([KEY]), OWN)[0])


@pytest.mark.parametrize("dtypes", [["float32"], ["float32", "bfloat16"], ["", "float32"]])
def test_own_rows_hit_whatever_lies_over_or_under_them(tmp_path: Path, dtypes: list[str]) -> None:
    parts = [part(dtype) for dtype in dtypes]
    for nodes in ([parts], [parts[:1], parts[1:]]):
        row, result = row_and_result(load(tmp_path, nodes, MissPolicy.COMPUTE))
        assert result == Result.BIGRAM
        np.testing.assert_array_equal(row, rows_of(np.array([KEY]), OWN)[0])


def test_what_was_removed_is_computed_and_gives_the_same(tmp_path: Path) -> None:
    table = load(tmp_path, [[part("float32"), REMOVED, part("bfloat16")]], MissPolicy.COMPUTE)
    row, result = row_and_result(table)
    assert result == Result.COMPUTED
    np.testing.assert_array_equal(row, rows_of(np.array([KEY]), OWN)[0])


def test_backoff_takes_rows_of_any_dtype(tmp_path: Path) -> None:
    table = load(tmp_path, [[unigrams(), part("bfloat16")]], MissPolicy.BACKOFF)
    row, result = row_and_result(table)
    assert result == Result.BIGRAM
    np.testing.assert_array_equal(row, rows_of(np.array([KEY]), ANOTHERS)[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", ""])
def test_a_segment_says_what_its_rows_were_computed_in(tmp_path: Path, dtype: str) -> None:
    [ref] = write_parts(Blobs(tmp_path), ENCODER, [part(dtype)])
    kind = SegmentKind(BASE, ENCODER, "centre", ref.order)
    assert Segment.open(tmp_path / ref.sha256, ref, kind).dtype == dtype
