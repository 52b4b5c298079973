"""A corpus of any size is read in the same memory: a small one against one eight times as large.

In processes of their own, with bounds so tight that the small one reaches them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import corpus as made
from benchmarks.corpus import in_a_process, place, write_corpus
from hmi import corpus
from hmi.bases import minilm_directory
from services.common.ngram_counts import NgramCounter
from services.executor.construct import texts

SMALL, TIMES = 600_000, 8
MAX_ENTRIES, MAX_PENDING = 40_000, 1 << 16
# Of what allocators keep; without the bound the larger one's n-grams take 30 MB more.
SLACK_BYTES = 20 << 20


def count_tightly(path: Path) -> None:
    corpus._MAX_PENDING, corpus._BATCH_BYTES = MAX_PENDING, 1 << 16
    tokenizer = minilm_directory() / "tokenizer.json"
    counts, undercount = corpus.count_corpus([path], tokenizer, max_entries=MAX_ENTRIES)
    assert undercount > 0
    assert len(counts.keys) <= MAX_ENTRIES


def learn_tightly(path: Path) -> None:
    texts._BYTES = 1 << 16
    made.learn(path, NgramCounter(max_entries=MAX_ENTRIES, max_pending=MAX_PENDING), 1 << 14)


@pytest.fixture(scope="module", params=["documents", "one line"])
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A small and a large text; or either as one line without an end, one document."""
    directory = tmp_path_factory.mktemp("corpus")
    large, small = directory / "large", directory / "small"
    write_corpus(large, SMALL * TIMES, num_words=60_000)
    if request.param == "one line":
        large.write_bytes(large.read_bytes().replace(b"\n", b" "))
    small.write_bytes(large.read_bytes()[:SMALL])
    return small, large


@pytest.mark.parametrize("read", [count_tightly, learn_tightly])
def test_eight_times_the_text_takes_no_more_memory(
    files: tuple[Path, Path], read: Callable[[Path], None]
) -> None:
    small, large = (in_a_process(read, file).peak_bytes for file in files)
    assert large - small < SLACK_BYTES


def test_eight_times_the_tokens_take_no_more_memory_for_where_texts_begin(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    for path, num_bytes in ((small, 24_000_000), (large, 192_000_000)):
        path.touch()
        os.truncate(path, num_bytes)  # what is made up of them needs their sizes alone
    readings = [in_a_process(place, path) for path in (small, large)]
    assert readings[1].own_bytes - readings[0].own_bytes < SLACK_BYTES
