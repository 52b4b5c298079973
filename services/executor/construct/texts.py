"""Text files as token sequences on disk, cut and batched the same way for the same seed.

Knows tokenizers and files; does not know what is learnt from them. Memory stays bounded: text is
read line by line, tokens lie in a memory-mapped file.

A text file is UTF-8 with one paragraph a line and an empty line between documents.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.common.errors import InvalidArgument
from services.common.text_lines import NotUtf8Error, lines_of

_LINES, _BYTES = 512, 1 << 20  # tokenized together, at most
_WINDOW = 1024  # pieces sorted by length together: batches are even, their order is random
MIN_PIECE = 16
_MAX_DRAWN = 1 << 22  # random lengths; a larger corpus uses them again


@dataclass(frozen=True, slots=True)
class Tokens:
    """A corpus as token ids without special tokens.

    Attributes:
        ids: uint32 `[tokens]`, memory-mapped.
        documents: int64 `[documents + 1]`: where each begins, and the end.
        lines: int64 `[lines + 1]`: where each line begins, and the end.
    """

    ids: NDArray[np.uint32]
    documents: NDArray[np.int64]
    lines: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    def texts(
        self, first: int, last: int, max_tokens: int = 1 << 20
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Every line as a text of its own, as it would be sent: between the special tokens `first`
        and `last`. The ids and lengths of some lines at a time, of at most `max_tokens` in the
        file or of one."""
        start = 0
        while start < len(self.lines) - 1:
            until = self.lines[start] + max_tokens
            stop = max(start + 1, int(np.searchsorted(self.lines, until, "right")) - 1)
            bounds = self.lines[start : stop + 1]
            ids = self.ids[bounds[0] : bounds[-1]].astype(np.int64)
            borders = np.repeat(bounds - bounds[0], 2)[1:-1]
            ids = np.insert(ids, borders, np.tile([first, last], stop - start))
            yield ids, np.diff(bounds) + 2
            start = stop


def tokenize(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    directory: Path,
    on_bytes: Callable[[int], None] = lambda _num: None,
) -> Tokens:
    """The files' tokens, from `directory` if they were written there before.

    Args:
        on_bytes: Called with the number of bytes read since the last call.

    Raises:
        InvalidArgument: A file is not UTF-8, or there is no text in any (field `corpus`).
    """
    directory.mkdir(parents=True, exist_ok=True)
    name = _digest(files, tokenizer)
    path, index = directory / f"{name}.tokens", directory / f"{name}.index.npz"
    if not index.is_file():
        documents, lines = _write(files, tokenizer, path, on_bytes)
        if lines[-1] == 0:
            path.unlink()
            raise InvalidArgument("corpus", "there is no text in the files")
        np.savez(index, documents=documents, lines=lines)
    with np.load(index) as starts:
        return Tokens(
            np.memmap(path, dtype=np.uint32, mode="r"), starts["documents"], starts["lines"]
        )


def _write(
    files: Sequence[Path], tokenizer: Tokenizer, path: Path, on_bytes: Callable[[int], None]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Write the tokens; where documents and lines begin, and the end."""
    starts, line_starts = array("q", [0]), array("q", [0])
    written = 0
    temporary = path.with_suffix(".part")
    with temporary.open("wb") as out:
        for file in files:
            for lines, num_bytes, is_end in _paragraphs(file):
                encoded = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
                for item in encoded:
                    out.write(np.array(item.ids, dtype=np.uint32).tobytes())
                    written += len(item.ids)
                    if item.ids:
                        line_starts.append(written)
                on_bytes(num_bytes)
                if is_end and written > starts[-1]:
                    starts.append(written)
            if written > starts[-1]:
                starts.append(written)
    temporary.rename(path)
    return np.array(starts, dtype=np.int64), np.array(line_starts, dtype=np.int64)


def _paragraphs(file: Path) -> Iterator[tuple[list[str], int, bool]]:
    """Pieces of documents: lines, their bytes, and whether the document ends with them.

    Raises:
        InvalidArgument: It is not UTF-8; the message says at which byte.
    """
    lines: list[str] = []
    num_bytes = 0
    try:
        for line, size in lines_of(file):
            num_bytes += size
            if line:
                lines.append(line)
            is_full = len(lines) == _LINES or num_bytes >= _BYTES
            if not line or (lines and is_full):
                yield lines, num_bytes, not line
                lines, num_bytes = [], 0
    except NotUtf8Error as error:
        raise InvalidArgument("corpus", f"{file.name} {error}") from error
    if lines:
        yield lines, num_bytes, True


def _digest(files: Sequence[Path], tokenizer: Tokenizer) -> str:
    """Names the files' content and the tokenizer; large files are told by size and time."""
    facts = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    text = json.dumps([facts, hashlib.sha256(tokenizer.to_str().encode()).hexdigest()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Documents cut into texts of many lengths, as a model will see them.

    Attributes:
        tokens: What is cut.
        starts: int64 `[pieces]`.
        lengths: int64 `[pieces]`, without special tokens.
    """

    tokens: Tokens
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def digest(self) -> str:
        """Names what is cut and where: sha256 of the places, and of some of the tokens."""
        digest = hashlib.sha256(self.starts.tobytes() + self.lengths.tobytes())
        digest.update(self.tokens.ids[:: max(1, self.tokens.num_tokens // 10_000)].tobytes())
        return digest.hexdigest()

    @classmethod
    def cut(cls, tokens: Tokens, max_length: int, seed: int) -> Pieces:
        """Cut every document at random lengths, 16 to `max_length`, so that each octave of lengths
        gets as many tokens: density 1 / length^2."""
        rng = np.random.default_rng([seed, 0])
        shortest = min(MIN_PIECE, max_length)
        num_drawn = tokens.num_tokens // shortest + 1
        inverse = rng.uniform(1 / (max_length + 1), 1 / shortest, min(num_drawn, _MAX_DRAWN))
        drawn = (1 / inverse).astype(np.int64)
        cuts = np.concatenate([[0], np.cumsum(drawn)])
        while cuts[-1] < tokens.num_tokens:
            cuts = np.concatenate([cuts, cuts[1:] + cuts[-1]])
        cuts = np.union1d(cuts[cuts < tokens.num_tokens], tokens.documents)
        lengths = np.diff(cuts)
        is_kept = lengths >= min(MIN_PIECE, max_length) // 2
        return cls(tokens, cuts[:-1][is_kept], lengths[is_kept])

    def split(self, num_held_out: int, seed: int) -> tuple[Pieces, Pieces]:
        """A part to learn from and a random part to judge by."""
        order = np.random.default_rng([seed, 1]).permutation(len(self))
        held, kept = order[:num_held_out], np.sort(order[num_held_out:])
        return self._take(kept), self._take(held)

    def batches(self, batch_tokens: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Indices of pieces, batch after batch, epoch after epoch, for ever.

        A batch has at most `batch_tokens` tokens (special tokens included), or one piece.
        """
        epoch = 0
        while True:
            rng = np.random.default_rng([seed, 2, epoch])
            order = rng.permutation(len(self))
            for start in range(0, len(order), _WINDOW):
                window = order[start : start + _WINDOW]
                window = window[np.argsort(self.lengths[window], kind="stable")]
                batches = list(_fill(window, self.lengths[window] + 2, batch_tokens))
                for index in rng.permutation(len(batches)):
                    yield batches[index]
            epoch += 1

    def rows(self, indices: NDArray[np.int64], first: int, last: int) -> list[NDArray[np.int64]]:
        """The pieces' token ids between the special tokens `first` and `last`."""
        ids = self.tokens.ids
        spans = zip(self.starts[indices], self.lengths[indices], strict=True)
        return [
            np.concatenate([[first], ids[start : start + length], [last]]).astype(np.int64)
            for start, length in spans
        ]

    def _take(self, indices: NDArray[np.int64]) -> Pieces:
        return Pieces(self.tokens, self.starts[indices], self.lengths[indices])


def _fill(
    indices: NDArray[np.int64], sizes: NDArray[np.int64], batch_tokens: int
) -> Iterator[NDArray[np.int64]]:
    """Consecutive groups of at most `batch_tokens`."""
    start = total = 0
    for position, size in enumerate(sizes.tolist()):
        if position > start and total + size > batch_tokens:
            yield indices[start:position]
            start, total = position, 0
        total += size
    if start < len(indices):
        yield indices[start:]
