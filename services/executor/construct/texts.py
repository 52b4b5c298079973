"""Text files as token sequences on disk, cut and batched the same way for the same seed.

Knows tokenizers and files; does not know what is learnt from them. Memory stays bounded: text is
read line by line, and all that grows with it lies in memory-mapped files.

A text file is UTF-8 with one paragraph a line and an empty line between documents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.common.errors import InvalidArgument
from services.common.text_lines import NotUtf8Error, lines_of
from services.executor.construct.disk_arrays import BLOCK, DiskArray, shuffled

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
        directory: Where what is made of them may lie; None is where temporary files do.
    """

    ids: NDArray[np.uint32]
    documents: NDArray[np.int64]
    lines: NDArray[np.int64]
    directory: Path | None = None

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
    paths = [directory / f"{name}.{what}" for what in ("tokens", "documents", "lines")]
    if not all(path.is_file() for path in paths):
        parts = [path.with_suffix(f"{path.suffix}.part") for path in paths]
        try:
            _write(files, tokenizer, parts, on_bytes)
            for part, path in zip(parts, paths, strict=True):
                part.rename(path)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
    ids, documents, lines = (
        np.asarray(np.memmap(path, dtype, mode="r"))
        for path, dtype in zip(paths, (np.uint32, np.int64, np.int64), strict=True)
    )
    return Tokens(ids, documents, lines, directory)


def _write(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    on_bytes: Callable[[int], None],
) -> None:
    """Write three files: the tokens, and where documents and lines begin, each with the end.

    Raises:
        InvalidArgument: A file is not UTF-8, or there is no text in any (field `corpus`).
    """
    written = document = 0
    with ExitStack() as exits:
        tokens, documents, lines = (exits.enter_context(path.open("wb")) for path in paths)
        documents.write(_bytes([0]))
        lines.write(_bytes([0]))
        for file in files:
            for texts, num_bytes, is_end in _paragraphs(file):
                encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
                rows = [item.ids for item in encoded if item.ids]
                tokens.write(np.array(list(chain.from_iterable(rows)), np.uint32).data)
                lines.write(_bytes(list(accumulate(map(len, rows), initial=written))[1:]))
                written += sum(map(len, rows))
                on_bytes(num_bytes)
                if is_end and written > document:
                    documents.write(_bytes([written]))
                    document = written
    if not written:
        raise InvalidArgument("corpus", "there is no text in the files")


def _bytes(places: list[int]) -> bytes:
    return np.array(places, np.int64).tobytes()


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
    yield lines, num_bytes, True


def _digest(files: Sequence[Path], tokenizer: Tokenizer) -> str:
    """Names the files, told by place, size and time as they may be large, and the tokenizer."""
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
        digest = hashlib.sha256(self.starts.data)
        digest.update(self.lengths.data)
        digest.update(self.tokens.ids[:: max(1, self.tokens.num_tokens // 10_000)].tobytes())
        return digest.hexdigest()

    @classmethod
    def cut(cls, tokens: Tokens, max_length: int, seed: int) -> Pieces:
        """Cut every document at random lengths, 16 to `max_length`, so that each octave of lengths
        gets as many tokens: density 1 / length^2."""
        shortest = min(MIN_PIECE, max_length)
        starts = DiskArray(tokens.directory, np.int64)
        lengths = DiskArray(tokens.directory, np.int64)
        last = 0
        for cuts in _cuts(tokens.num_tokens, shortest, max_length, seed):
            ended = np.searchsorted(tokens.documents, [last, cuts[-1]], "right")
            borders = np.union1d(cuts[cuts < tokens.num_tokens], tokens.documents[slice(*ended)])
            begun = np.concatenate([[last], borders[:-1]])
            is_kept = borders - begun >= shortest // 2
            starts.append(begun[is_kept])
            lengths.append((borders - begun)[is_kept])
            last = int(borders[-1])
            if last == tokens.num_tokens:
                break
        return cls(tokens, starts.finish(), lengths.finish())

    def split(self, num_held_out: int, seed: int) -> tuple[Pieces, Pieces]:
        """A part to learn from and a random part to judge by."""
        rng = np.random.default_rng([seed, 1])
        held = shuffled(len(self), rng, self.tokens.directory)[:num_held_out].astype(np.int64)
        return self._without(held), Pieces(self.tokens, self.starts[held], self.lengths[held])

    def batches(self, batch_tokens: int, seed: int) -> Iterator[NDArray[np.int64]]:
        """Indices of pieces, batch after batch, epoch after epoch, for ever.

        A batch has at most `batch_tokens` tokens (special tokens included), or one piece.
        """
        epoch = 0
        while True:
            rng = np.random.default_rng([seed, 2, epoch])
            order = shuffled(len(self), rng, self.tokens.directory)
            for start in range(0, len(order), _WINDOW):
                window = order[start : start + _WINDOW].astype(np.int64)
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

    def _without(self, indices: NDArray[np.int64]) -> Pieces:
        starts = DiskArray(self.tokens.directory, np.int64)
        lengths = DiskArray(self.tokens.directory, np.int64)
        for start in range(0, len(self), BLOCK):
            stop = min(start + BLOCK, len(self))
            is_kept = ~np.isin(np.arange(start, stop), indices)
            starts.append(self.starts[start:stop][is_kept])
            lengths.append(self.lengths[start:stop][is_kept])
        return Pieces(self.tokens, starts.finish(), lengths.finish())


def _cuts(num_tokens: int, shortest: int, longest: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Where random pieces end, ascending, some at a time, for ever."""
    num_drawn = min(num_tokens // shortest + 1, _MAX_DRAWN)
    end = 0
    while True:
        rng = np.random.default_rng([seed, 0])
        for start in range(0, num_drawn, BLOCK):
            inverse = rng.uniform(1 / (longest + 1), 1 / shortest, min(BLOCK, num_drawn - start))
            ends = end + np.cumsum((1 / inverse).astype(np.int64))
            end = int(ends[-1])
            yield ends


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
