"""What reading a corpus takes: memory and time, of a text and of one ten times as large.

Knows how to make text of any size; does not know what is done with n-grams. Words come as often as
Zipf and Mandelbrot say, from a vocabulary too large for any bound, and in random order: almost
every trigram is new, which is the worst that text can do to a counter.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
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


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading took, in a process of its own.

    Attributes:
        peak_bytes: The process's largest resident set; `start_bytes` before it read.
    """

    peak_bytes: int
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
    before = _peak_bytes()
    began = time.perf_counter()
    read(path)
    sender.send(Reading(_peak_bytes(), before, time.perf_counter() - began))  # type: ignore[attr-defined]


def _peak_bytes() -> int:
    """VmHWM: unlike ru_maxrss it is not inherited from the process that forked this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this system does not tell a process's peak")


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
        Pieces.cut(tokens, 510, seed=0)
        for ids, lengths in tokens.texts(101, 102, max_tokens):
            counter.add(ids, lengths)
    counter.counts("")


def _exact(value: float) -> Estimate:
    return Estimate(value, value, value)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.corpus", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=64, help="of the smaller text")
    parser.add_argument("--times", type=int, default=TIMES, help="how much larger the other is")
    parser.add_argument("--only", choices=("count", "distill"), help="one of the two ways to read")
    parser.add_argument("--directory", type=Path, help="where texts are made; a temporary one")
    options = parser.parse_args()
    ways = {"count": ("hmi domains create --corpus", count), "distill": ("hmi distill", learn)}
    with tempfile.TemporaryDirectory(dir=options.directory) as made, Report("corpus") as report:
        path = Path(made) / "corpus.txt"
        write_corpus(path, options.megabytes * options.times * 10**6)
        small = Path(made) / "small.txt"
        with path.open("rb") as whole:
            small.write_bytes(whole.read(options.megabytes * 10**6))
        for key, (name, read) in ways.items():
            if options.only in (None, key):
                _report(report, name, read, [small, path])


def _report(report: Report, name: str, read: Callable[[Path], None], files: list[Path]) -> None:
    peaks = []
    for file in files:
        reading = in_a_process(read, file)
        megabytes = file.stat().st_size / 1e6
        peaks.append(reading.peak_bytes)
        what = f"{name}, {megabytes:,.0f} MB of text"
        report.add(f"{what}: peak memory", _exact(reading.peak_bytes / 1e6), "MB")
        report.add(f"{what}: before it read", _exact(reading.start_bytes / 1e6), "MB")
        report.add(f"{what}: speed", _exact(megabytes / reading.seconds), "MB/s")
    report.add(
        f"{name}: peak of the larger text / of the smaller", _exact(peaks[1] / peaks[0]), "",
        Goal("<=", 1.25),
    )  # fmt: skip


if __name__ == "__main__":
    main()
