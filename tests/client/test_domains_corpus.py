"""Counting a corpus: what is refused, that nothing depends on how it is read, that memory stays."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from hmi import corpus
from hmi.bases import REQUIRED, SPLIT, Checkpoint
from hmi.corpus import check_files, count_corpus
from hmi.errors import InvalidArgument
from services.common import ngrams
from tests.gateway.conftest import tokenizer_json

CLS, SEP = 2, 3


@pytest.fixture
def tokenizer_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(tokenizer_json())
    return path


def written(tmp_path: Path, data: bytes, name: str = "corpus.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


def oracle(tokenizer_file: Path, lines: list[str]) -> Counter[tuple[int, int, int]]:
    """Every n-gram (slots, 0 absent) that could answer for a token, one token at a time."""
    tokenizer = Tokenizer.from_str(tokenizer_file.read_text())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found: Counter[tuple[int, int, int]] = Counter()
    for line in lines:
        slots = [0, *(one + 1 for one in tokenizer.encode(line).ids), 0]
        for left, centre, right in zip(slots, slots[1:], slots[2:], strict=False):
            answers = {(left, centre, right), (left, centre, 0), (0, centre, right), (0, centre, 0)}
            found.update(answers)
    return found


def as_counter(counts: corpus.NgramCounts) -> Counter[tuple[int, int, int]]:
    slots = ngrams.unpack(counts.keys).tolist()
    return Counter(
        {tuple(key): count for key, count in zip(slots, counts.counts.tolist(), strict=True)}
    )


def test_counts_are_those_of_one_token_at_a_time(tmp_path: Path, tokenizer_file: Path) -> None:
    lines = ["the cat sat on the mat", "", "the dog ran", "paris"]
    path = written(tmp_path, "\n".join(lines).encode())
    counts, undercount = count_corpus([path], tokenizer_file)
    assert as_counter(counts) == oracle(tokenizer_file, [line for line in lines if line])
    assert counts.tokenizer_digest == hashlib.sha256(tokenizer_file.read_bytes()).hexdigest()
    assert counts.num_tokens == 8 + 5 + 3
    assert undercount == 0


def test_several_files_and_progress_add_up(tmp_path: Path, tokenizer_file: Path) -> None:
    paths = [written(tmp_path, b"the cat\n" * 9, "a"), written(tmp_path, b"the dog\n", "b")]
    seen: list[int] = []
    counts, _ = count_corpus(paths, tokenizer_file, seen.append)
    assert as_counter(counts) == oracle(tokenizer_file, ["the cat"] * 9 + ["the dog"])
    assert sum(seen) == check_files(paths)


def test_windows_lines_and_a_byte_order_mark_are_no_text(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    path = written(tmp_path, "\ufeffthe cat\r\nthe dog\r\n".encode())
    counts, _ = count_corpus([path], tokenizer_file)
    assert as_counter(counts) == oracle(tokenizer_file, ["the cat", "the dog"])


def test_a_line_that_does_not_end_is_read_in_pieces(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_MAX_LINE_BYTES", 64)
    words = b"the cat sat on the mat " * 200
    counts, _ = count_corpus([written(tmp_path, words)], tokenizer_file)
    num_pieces = counts.num_tokens - 200 * 6  # what is not a word is [CLS] and [SEP]
    assert num_pieces > 2 * 50
    without_spaces = "é🙂".encode() * 500
    counts, _ = count_corpus([written(tmp_path, without_spaces)], tokenizer_file)
    assert counts.num_tokens > 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b" \n\n\t\n", "holds no text"),
        (b"the cat\nthe \xff dog\n", "is not UTF-8 at byte 12"),
        (b"the cat\n" * 40_000 + b"caf\xe9\n", "is not UTF-8 at byte 320003"),
        (b"caf\xc3", "is not UTF-8 at byte 3"),
        ("the cat\n".encode("utf-16"), "is not UTF-8 at byte 0"),
    ],
)
def test_what_is_no_text_is_refused_with_file_and_byte(
    tmp_path: Path, tokenizer_file: Path, data: bytes, message: str
) -> None:
    good, bad = written(tmp_path, b"the cat\n", "good"), written(tmp_path, data, "bad")
    with pytest.raises(InvalidArgument) as caught:
        count_corpus([good, bad], tokenizer_file)
    assert caught.value.field == "corpus"
    assert caught.value.message == f"{bad} {message}"


def test_beyond_its_bound_the_rarest_are_left_out(tmp_path: Path, tokenizer_file: Path) -> None:
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "mat", "dog", "ran", "paris", "anna", "smith"]
    lines = [" ".join(rng.choice(words, 12)) for _ in range(2000)]
    path = written(tmp_path, "\n".join(lines).encode())
    whole = as_counter(count_corpus([path], tokenizer_file)[0])
    counts, undercount = count_corpus([path], tokenizer_file, max_entries=400)
    assert len(counts.keys) <= 400
    for key, count in as_counter(counts).items():
        assert whole[key] - undercount <= count <= whole[key]


def test_a_checkpoint_with_what_splits_it_is_another_base(tmp_path: Path) -> None:
    directory, shipped = tmp_path / "base", tmp_path / "shipped"
    directory.mkdir()
    shipped.mkdir()
    for name in REQUIRED:
        (directory / name).write_text(name)
    plain = Checkpoint.of(directory)
    for name in SPLIT:
        (shipped / name).write_text(name)
    beside = Checkpoint.of(directory, [shipped / name for name in SPLIT])
    for name in SPLIT:
        (directory / name).write_text(name)
    inside = Checkpoint.of(directory)
    assert beside.digest == inside.digest != plain.digest
    names = [file.path.name for file in beside.files]
    assert names == sorted([*REQUIRED, *SPLIT])
    assert b"".join(beside.chunks()) == b"".join(inside.chunks())
