"""A corpus's n-grams, counted as they will be looked up.

Knows text files and a base's tokenizer; does not know tables. A corpus is UTF-8 text of any length,
each line of it a text of its own. Memory stays bounded: text is read piece by piece, and of more
distinct n-grams than are kept the rarest are left out (`services.common.ngram_counts`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from hmi.errors import InvalidArgument
from services.common.ngram_counts import NgramCounter, NgramCounts
from services.common.text_lines import MAX_LINE_BYTES as _MAX_LINE_BYTES
from services.common.text_lines import NotUtf8Error, lines_of

MAX_ENTRIES = 16_000_000
"""Distinct n-grams kept: their counts just fit into what a gateway takes, 256 MiB."""

_MAX_PENDING = 1 << 23  # keys between two merges, whose time goes with all that is kept
_BATCH_BYTES = 1 << 20

OnBytes = Callable[[int], None]
"""Called with the bytes of text that were just counted."""


def check_files(files: Sequence[Path]) -> int:
    """That files are there and hold something; their bytes together.

    Raises:
        InvalidArgument: Naming the file.
    """
    sizes = []
    for path in files:
        if not path.is_file():
            raise _refused(path, "is no file")
        sizes.append(path.stat().st_size)
        if not sizes[-1]:
            raise _refused(path, "is empty")
    return sum(sizes)


def count_corpus(
    files: Sequence[Path],
    tokenizer_file: Path,
    on_bytes: OnBytes = lambda num: None,
    max_entries: int = MAX_ENTRIES,
) -> tuple[NgramCounts, int]:
    """The n-grams of text files, as a base's tokenizer makes them.

    Args:
        tokenizer_file: The base's tokenizer.json.
        max_entries: Distinct n-grams that are kept.

    Returns:
        The counts, and by how much one may be too low as rare n-grams were left out on the way.

    Raises:
        InvalidArgument: A file is missing, empty or not UTF-8; it and the byte are named.
    """
    check_files(files)
    data = tokenizer_file.read_bytes()
    tokenizer = Tokenizer.from_str(data.decode())
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counter = NgramCounter(max_entries=max_entries, max_pending=_MAX_PENDING)
    for path in files:
        num_before = counter.num_tokens
        for texts, num_bytes in _batches(path):
            encoded = [item.ids for item in tokenizer.encode_batch_fast(texts)]
            lengths = [len(ids) for ids in encoded]
            counter.add(np.concatenate([np.array(ids, np.int64) for ids in encoded]), lengths)
            on_bytes(num_bytes)
        if counter.num_tokens == num_before:
            raise _refused(path, "holds no text")
    return counter.counts(hashlib.sha256(data).hexdigest()), counter.max_undercount


def _batches(path: Path) -> Iterator[tuple[list[str], int]]:
    """Texts to be tokenized together, none of them empty, and the bytes they take."""
    texts: list[str] = []
    num_bytes = 0
    for text, size in _texts(path):
        num_bytes += size
        if text:
            texts.append(text)
        if texts and num_bytes >= _BATCH_BYTES:
            yield texts, num_bytes
            texts, num_bytes = [], 0
    if texts:
        yield texts, num_bytes


def _texts(path: Path) -> Iterator[tuple[str, int]]:
    """A file's lines, stripped, and the bytes of each; a very long one comes in several."""
    try:
        yield from lines_of(path, _MAX_LINE_BYTES)
    except NotUtf8Error as error:
        raise _refused(path, str(error)) from error


def _refused(path: Path, message: str) -> InvalidArgument:
    return InvalidArgument(f"{path} {message}", field="corpus", reason="BAD_CORPUS")
