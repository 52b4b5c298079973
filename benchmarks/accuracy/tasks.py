"""The three tasks as token rows with labels and folds.

Knows texts, tokens and labels; does not know encoders. A quarter of each set (whole films, whole
samples) is kept for adapting encoders and is in no task.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from benchmarks import datasets
from hmi.bases import minilm_directory
from services.common import ngrams
from services.common.ngrams import IntArray

NUM_FOLDS = 5
IGNORED = -100
_KEPT_ASIDE = 4
_ASIDE_SEED, _FOLD_SEED, _SAMPLE_SEED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of a set is used.

    Attributes:
        texts: At most; each is tested once, and stands in the tables of the other folds.
        tokens: Of a text, special tokens included.
        learnt: Texts of the other folds that a fold's adapter is trained on.
    """

    texts: int
    tokens: int
    learnt: int


LIMITS = {
    "topics": Limits(texts=2_000, tokens=128, learnt=2_000),
    "sentiment": Limits(texts=8_000, tokens=64, learnt=4_800),
    "tags": Limits(texts=5_000, tokens=64, learnt=3_600),
}
QUICK = {
    name: Limits(limits.texts // 5, limits.tokens, limits.learnt // 4)
    for name, limits in LIMITS.items()
}


@dataclass(frozen=True)
class Task:
    """One task's texts.

    Attributes:
        rows: Token ids of each text, special tokens included.
        labels: `[texts]`, or for tags a label for each token of each text: IGNORED but for the
            first piece of each word.
        groups: int64 `[texts]`: texts that belong together.
        fold_of: int64 `[texts]`.
    """

    name: str
    rows: list[IntArray]
    labels: list[IntArray]
    num_labels: int
    is_by_token: bool
    groups: IntArray
    fold_of: IntArray

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> IntArray:
        """Tokens of each text."""
        return np.array([len(row) for row in self.rows], np.int64)

    @property
    def keys(self) -> IntArray:
        """Every token's fullest n-gram, int64 `[tokens]`."""
        return ngrams.keys_of(np.concatenate(self.rows), self.lengths)


def load(name: str, limits: Limits) -> Task:
    """A task's texts, the same for the same limits.

    Raises:
        Missing: The set is not there.
    """
    return _tags(limits) if name == "tags" else _documents(name, limits)


def texts_aside(name: str) -> list[str]:
    """What the task leaves for adapting an encoder."""
    if name == "tags":
        sentences = datasets.brown()
        is_aside = _is_aside([sentence.group for sentence in sentences])
        return [
            " ".join(sentence.words)
            for sentence, aside in zip(sentences, is_aside, strict=True)
            if aside
        ]
    documents = _set(name)
    is_aside = _is_aside([document.group for document in documents])
    return [d.text for d, aside in zip(documents, is_aside, strict=True) if aside]


def _set(name: str) -> list[datasets.Document]:
    return datasets.bbc() if name == "topics" else datasets.rotten_tomatoes()


def _is_aside(groups: Sequence[str]) -> NDArray[np.bool_]:
    return np.asarray(datasets.folds(groups, _KEPT_ASIDE, _ASIDE_SEED) == 0)


def _sample(groups: Sequence[str], limits: Limits) -> list[int]:
    """Places of the texts that are used, in order."""
    usable = np.flatnonzero(~_is_aside(groups))
    chance = np.random.default_rng(_SAMPLE_SEED)
    picked = chance.permutation(usable)[: limits.texts]
    return [int(place) for place in np.sort(picked)]


def _documents(name: str, limits: Limits) -> Task:
    every = _set(name)
    documents = [every[place] for place in _sample([d.group for d in every], limits)]
    encoded = _tokenizer(limits).encode_batch([document.text for document in documents])
    names = sorted({document.label for document in documents})
    return Task(
        name,
        [np.array(row.ids, np.int64) for row in encoded],
        [np.array([names.index(document.label)]) for document in documents],
        len(names),
        False,
        *_folds([document.group for document in documents]),
    )


def _tags(limits: Limits) -> Task:
    every = datasets.brown()
    sentences = [every[place] for place in _sample([s.group for s in every], limits)]
    encoded = _tokenizer(limits).encode_batch([list(s.words) for s in sentences], True)
    numbers = {tag: n for n, tag in enumerate(sorted({t for s in every for t in s.tags}))}
    labels = []
    for sentence, row in zip(sentences, encoded, strict=True):
        of_token = np.full(len(row.ids), IGNORED, np.int64)
        before = None
        for place, word in enumerate(row.word_ids):
            if word is not None and word != before:
                of_token[place] = numbers[sentence.tags[word]]
            before = word
        labels.append(of_token)
    rows = [np.array(row.ids, np.int64) for row in encoded]
    return Task(
        "tags",
        rows,
        labels,
        len(numbers),
        True,
        *_folds([s.group for s in sentences]),
    )


def _folds(groups: list[str]) -> tuple[IntArray, IntArray]:
    _, numbers = np.unique(groups, return_inverse=True)
    return numbers.astype(np.int64), datasets.folds(groups, NUM_FOLDS, _FOLD_SEED)


def _tokenizer(limits: Limits) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limits.tokens)
    return tokenizer
