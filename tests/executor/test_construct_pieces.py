"""Pieces lie on disk and are made block after block; in memory, at once, they would be the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from services.executor.construct import disk_arrays, texts
from services.executor.construct.disk_arrays import DiskArray, shuffled
from services.executor.construct.texts import MIN_PIECE, Pieces, Tokens

IntArray = NDArray[np.int64]


def cut_at_once(tokens: Tokens, max_length: int, seed: int) -> tuple[IntArray, IntArray]:
    """Starts and lengths of the pieces."""
    shortest = min(MIN_PIECE, max_length)
    rng = np.random.default_rng([seed, 0])
    num_drawn = min(tokens.num_tokens // shortest + 1, texts._MAX_DRAWN)
    drawn = (1 / rng.uniform(1 / (max_length + 1), 1 / shortest, num_drawn)).astype(np.int64)
    times = tokens.num_tokens // int(drawn.sum()) + 1
    ends = np.cumsum(np.tile(drawn, times))
    cuts = np.union1d(ends[ends < tokens.num_tokens], tokens.documents)
    is_kept = np.diff(cuts) >= shortest // 2
    return cuts[:-1][is_kept], np.diff(cuts)[is_kept]


def made(num_tokens: int, seed: int, directory: Path | None = None) -> Tokens:
    """Random tokens, in documents of very different lengths."""
    rng = np.random.default_rng(seed)
    borders = rng.integers(1, num_tokens, num_tokens // 200)
    documents = np.unique([0, *borders.tolist(), num_tokens])
    ids = rng.integers(0, 30_000, num_tokens).astype(np.uint32)
    return Tokens(ids, documents, documents, directory)


@pytest.fixture(params=[7, 1 << 16], ids=["small blocks", "one block"])
def _block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (texts, disk_arrays):
        monkeypatch.setattr(module, "BLOCK", request.param)


@pytest.mark.usefixtures("_block")
@pytest.mark.parametrize("max_length", [4, 62, 510])
@pytest.mark.parametrize("max_drawn", [37, 1 << 22])
def test_pieces_are_those_that_are_cut_at_once_in_memory(
    max_length: int, max_drawn: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(texts, "_MAX_DRAWN", max_drawn)
    tokens = made(20_000, seed=max_length, directory=tmp_path)
    pieces = Pieces.cut(tokens, max_length, seed=3)
    starts, lengths = cut_at_once(tokens, max_length, seed=3)
    np.testing.assert_array_equal(pieces.starts, starts)
    np.testing.assert_array_equal(pieces.lengths, lengths)
    learnt, held_out = pieces.split(40, seed=3)
    order = np.random.default_rng([3, 1]).permutation(len(starts))
    np.testing.assert_array_equal(held_out.starts, starts[order[:40]])
    np.testing.assert_array_equal(learnt.starts, starts[np.sort(order[40:])])
    np.testing.assert_array_equal(learnt.lengths, lengths[np.sort(order[40:])])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_block")
def test_an_order_in_a_file_is_the_one_in_memory_and_leaves_the_generator_there() -> None:
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    np.testing.assert_array_equal(shuffled(5_000, one, None), other.permutation(5_000))
    assert one.integers(1 << 60) == other.integers(1 << 60)


def test_an_epoch_has_every_piece_once() -> None:
    pieces = Pieces.cut(made(60_000, seed=1), 126, seed=1)
    seen: list[int] = []
    for batch in pieces.batches(1_000, seed=0):
        seen += batch.tolist()
        if len(seen) >= len(pieces):
            break
    assert sorted(seen) == list(range(len(pieces)))


def test_a_run_begun_before_pieces_lay_on_disk_goes_on_with_the_same_texts() -> None:
    learnt, _ = Pieces.cut(made(50_000, seed=2), 510, seed=0).split(20, seed=0)
    assert learnt.digest.startswith("69c7c4a11cce858a")
    first = [batch.tolist() for batch in itertools.islice(learnt.batches(600, seed=0), 2)]
    assert first == [[138, 1068], [700]]


def test_an_array_on_disk_may_hold_nothing() -> None:
    assert DiskArray(None, np.int64).finish().tolist() == []
