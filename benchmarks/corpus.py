"""What reading a corpus takes: memory and time, of a text and of one ten times as large.

Knows how to make text of any size; does not know what is done with n-grams. Words come as often as
Zipf and Mandelbrot say, from a vocabulary too large for any bound, and in random order: almost
every trigram is new, which is the worst that text can do to a counter.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from benchmarks.report import Estimate, Goal, Report
from hmi.bases import minilm_directory
from hmi.corpus import count_corpus
from services.common.ngram_counts import NgramCounter

VOCABULARY = 1_000_000
TIMES = 10
_EXPONENT, _SHIFT = 1.07, 2.7
_LINE_WORDS = 20
_DOCUMENT_LINES = 10
_CHUNK_WORDS = _LINE_WORDS * _DOCUMENT_LINES << 12
_TOKEN_BYTES = 4  # of text, about
_LINE_TOKENS = 27
_WATCH_S = 0.005


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading took, in a process of its own.

    Attributes:
        peak_bytes: The process's largest resident set; `start_bytes` before it read.
        own_bytes: The same without the pages of mapped files, which the system may take back.
    """

    peak_bytes: int
    own_bytes: int
    start_bytes: int
    seconds: float


def vocabulary(num_words: int, seed: int = 0) -> list[bytes]:
    """Distinct words by falling frequency: MiniLM's own, then pairs of them written as one."""
    tokens = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json")).get_vocab()
    common = [word for word in sorted(tokens, key=tokens.__getitem__) if word.isalpha()]
    words = dict.fromkeys(word.encode() for word in common)
    rng = np.random.default_rng(seed)
    while len(words) < num_words:
        for one, other in rng.integers(0, len(common), (num_words, 2)).tolist():
            words[(common[one] + common[other]).encode()] = None
    return list(words)[:num_words]


def write_corpus(path: Path, num_bytes: int, seed: int = 0, num_words: int = VOCABULARY) -> None:
    """A text file of about this size: lines of twenty words, ten lines a document."""
    rng = np.random.default_rng([seed, 1])
    words = np.array(vocabulary(num_words, seed), dtype=object)
    weights = (np.arange(1, num_words + 1) + _SHIFT) ** -_EXPONENT
    cumulated = np.cumsum(weights) / weights.sum()
    written = 0
    with path.open("wb") as file:
        while written < num_bytes:
            drawn = words[np.searchsorted(cumulated, rng.random(_CHUNK_WORDS))].tolist()
            lines = [
                b" ".join(drawn[start : start + _LINE_WORDS])
                for start in range(0, _CHUNK_WORDS, _LINE_WORDS)
            ]
            documents = [
                b"\n".join(lines[start : start + _DOCUMENT_LINES])
                for start in range(0, len(lines), _DOCUMENT_LINES)
            ]
            written += file.write((b"\n\n".join(documents) + b"\n\n")[: num_bytes - written])


def in_a_process(read: Callable[[Path], None], path: Path) -> Reading:
    """Read a file in a new process, which inherits nothing."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(read, path, sender))
    process.start()
    sender.close()
    try:
        reading: Reading = receiver.recv()
    finally:
        process.join()
    return reading


def _measured(read: Callable[[Path], None], path: Path, sender: object) -> None:
    before = _bytes_of("VmHWM")
    began = time.perf_counter()
    with _watched() as own:
        read(path)
    reading = Reading(_bytes_of("VmHWM"), max(own), before, time.perf_counter() - began)
    sender.send(reading)  # type: ignore[attr-defined]


@contextmanager
def _watched() -> Iterator[list[int]]:
    """This process's own memory again and again, as the system keeps no peak of it."""
    seen, stop = [_bytes_of("RssAnon")], threading.Event()

    def watch() -> None:
        while not stop.wait(_WATCH_S):
            seen[:] = [max(*seen, _bytes_of("RssAnon"))]

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def _bytes_of(name: str) -> int:
    """VmHWM is the peak: unlike ru_maxrss it is not inherited from the process that forked this
    one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell a process's {name}")


def count(path: Path) -> None:
    """As `hmi domains create --corpus` does: counts, and their blob."""
    counts, _ = count_corpus([path], minilm_directory() / "tokenizer.json")
    counts.to_bytes()


def learn(path: Path, counter: NgramCounter | None = None, max_tokens: int = 1 << 20) -> None:
    """As `hmi distill` does before it learns: tokens on disk, pieces, the root's n-grams.

    Args:
        counter: Of the root's n-grams, bounded as in `hmi distill` if None.
        max_tokens: Counted at once.
    """
    from services.executor.construct.texts import Pieces, tokenize

    tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    counter = counter or NgramCounter()
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        tokens = tokenize([path], tokenizer, Path(directory))
        learnt, _ = Pieces.cut(tokens, 510, seed=0).split(256, seed=0)
        next(learnt.batches(4096, seed=0))
        for ids, lengths in tokens.texts(101, 102, max_tokens):
            counter.add(ids, lengths)
    counter.counts("")


def place(path: Path) -> None:
    """As `hmi distill` does with a text's tokens before it learns: where its pieces are, which are
    held out, and their first order. The tokens are made up, about as many as the text would have.
    """
    from services.executor.construct.texts import Pieces, Tokens

    num_tokens = path.stat().st_size // _TOKEN_BYTES
    with tempfile.TemporaryDirectory(dir=path.parent) as made:
        ids, lines, documents = (Path(made) / name for name in ("ids", "lines", "documents"))
        with ids.open("wb") as file:
            file.truncate(num_tokens * 4)
        for starts, num in ((lines, _LINE_TOKENS), (documents, _LINE_TOKENS * _DOCUMENT_LINES)):
            _write_starts(starts, num_tokens, num)
        tokens = Tokens(
            np.asarray(np.memmap(ids, np.uint32, mode="r")),
            np.asarray(np.memmap(documents, np.int64, mode="r")),
            np.asarray(np.memmap(lines, np.int64, mode="r")),
            Path(made),
        )
        learnt, _ = Pieces.cut(tokens, 510, seed=0).split(256, seed=0)
        next(learnt.batches(4096, seed=0))


def _write_starts(path: Path, end: int, step: int) -> None:
    """Every `step` tokens, and the end."""
    with path.open("wb") as file:
        for start in range(0, end, step << 16):
            np.arange(start, min(start + (step << 16), end), step).tofile(file)
        np.array([end]).tofile(file)


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value)


_WAYS = {
    "count": ("hmi domains create --corpus", count),
    "distill": ("hmi distill", learn),
    "places": ("hmi distill, places of its texts", place),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64, help="of the smaller text")
    parser.add_argument("--times", type=int, default=TIMES, help="how much larger the other is")
    parser.add_argument("--only", choices=tuple(_WAYS), help="one of the ways to read")
    parser.add_argument("--directory", type=Path, help="where texts are made; a temporary one")
    options = parser.parse_args()
    sizes = [options.megabytes * 10**6, options.megabytes * options.times * 10**6]
    with tempfile.TemporaryDirectory(dir=options.directory) as made, Report("corpus") as report:
        small, large = Path(made) / "small.txt", Path(made) / "corpus.txt"
        if options.only == "places":  # which looks at their sizes alone
            for path, size in zip((small, large), sizes, strict=True):
                path.touch()
                os.truncate(path, size)
        else:
            write_corpus(large, sizes[1])
            with large.open("rb") as whole:
                small.write_bytes(whole.read(sizes[0]))
        for key, (name, read) in _WAYS.items():
            if options.only in (None, key):
                _report(report, name, read, [small, large])


def _report(report: Report, name: str, read: Callable[[Path], None], files: list[Path]) -> None:
    peaks = []
    for file in files:
        reading = in_a_process(read, file)
        megabytes = file.stat().st_size / 1e6
        peaks.append(reading.own_bytes)
        what = f"{name}, {megabytes:,.0f} MB of text"
        report.add(f"{what}: peak memory", _exact(reading.peak_bytes / 1e6), "MB")
        report.add(f"{what}: without mapped files", _exact(reading.own_bytes / 1e6), "MB")
        report.add(f"{what}: before it read", _exact(reading.start_bytes / 1e6), "MB")
        report.add(f"{what}: speed", _exact(megabytes / reading.seconds), "MB/s")
    report.add(
        f"{name}: without mapped files, the larger text's / the smaller's",
        _exact(peaks[1] / peaks[0]),
        "",
        Goal("<=", 1.25),
    )


if __name__ == "__main__":
    main()
