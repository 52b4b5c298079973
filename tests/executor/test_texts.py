"""Text files as tokens: documents keep their ends however they are read, and come back whole."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from services.common.errors import InvalidArgument
from services.executor.construct import texts
from services.executor.construct.texts import Tokens, tokenize
from tests.gateway.conftest import tokenizer_json

DOCUMENTS = ["the cat sat\non the mat\n", "the dog ran\n" * 7, "paris\n"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    made = Tokenizer.from_str(tokenizer_json().decode())
    made.no_padding()
    return made


@pytest.mark.parametrize(("lines", "num_bytes"), [(512, 1 << 20), (7, 1 << 20), (512, 12), (1, 1)])
def test_documents_end_where_an_empty_line_is_however_many_lines_are_read_at_once(
    tmp_path: Path,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    lines: int,
    num_bytes: int,
) -> None:
    monkeypatch.setattr(texts, "_LINES", lines)
    monkeypatch.setattr(texts, "_BYTES", num_bytes)
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n" + "\n".join(DOCUMENTS))
    seen: list[int] = []
    tokens = tokenize([path], tokenizer, tmp_path / "tokens", seen.append)
    lengths = [
        sum(len(tokenizer.encode(line, add_special_tokens=False).ids) for line in text.splitlines())
        for text in DOCUMENTS
    ]
    assert np.diff(tokens.documents).tolist() == lengths
    by_line = [
        len(tokenizer.encode(line, add_special_tokens=False).ids)
        for text in DOCUMENTS
        for line in text.splitlines()
    ]
    assert np.diff(tokens.lines).tolist() == [length for length in by_line if length]
    assert sum(seen) == path.stat().st_size


@pytest.mark.parametrize("max_tokens", [1, 3, 10, 1000])
def test_every_line_is_a_text_between_special_tokens(max_tokens: int) -> None:
    lines = np.array([0, 2, 3, 13, 14, 20])
    tokens = Tokens(np.arange(20, dtype=np.uint32), np.array([0, 20]), lines)
    seen: list[list[int]] = []
    for ids, lengths in tokens.texts(101, 102, max_tokens):
        assert len(lengths) == 1 or len(ids) - 2 * len(lengths) <= max_tokens
        seen += [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]
    assert seen == [[101, *range(start, end), 102] for start, end in itertools.pairwise(lines)]


@pytest.mark.parametrize("content", [b"the cat\n\xff", b"\n\n"])
def test_what_cannot_be_read_leaves_no_file(
    tmp_path: Path, tokenizer: Tokenizer, content: bytes
) -> None:
    path = tmp_path / "corpus.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidArgument) as refusal:
        tokenize([path], tokenizer, tmp_path / "tokens")
    assert refusal.value.field == "corpus"
    assert list((tmp_path / "tokens").iterdir()) == []
