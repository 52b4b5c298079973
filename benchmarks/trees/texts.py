"""The texts of a tree's domains as n-grams, and what each domain counts.

Knows documents and domains; does not know tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from benchmarks import datasets
from hmi.bases import minilm_directory
from services.common import ngrams
from services.common.ids import parent_path
from services.common.ngram_counts import answering_keys, merge_counts
from services.common.ngrams import MAX_ORDER, IntArray, order_of
from services.knowledge_store.tree import NodeCounts, Source, combine

MAX_TOKENS = 512
NEWS, REVIEWS = "news", "reviews/movies"
ROOT = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A document as the base's encoder would be sent it.

    Attributes:
        keys: int64 `[tokens]`: each token's fullest n-gram, special tokens included.
    """

    path: str
    keys: IntArray


@dataclass(frozen=True, slots=True)
class Traffic:
    """Texts to count and texts held out, of all domains."""

    counted: Sequence[Text]
    held_out: Sequence[Text]


def load() -> tuple[list[Text], list[str]]:
    """All documents, cut at 512 tokens, and each one's group.

    Raises:
        Missing: A set is not there.
    """
    tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    documents = [(f"{NEWS}/{item.label}", item) for item in datasets.bbc()]
    documents += [(REVIEWS, item) for item in datasets.rotten_tomatoes()]
    encoded = tokenizer.encode_batch([item.text for _, item in documents])
    texts = [
        Text(path, ngrams.keys_of(row.ids, [len(row.ids)]))
        for (path, _), row in zip(documents, encoded, strict=True)
    ]
    return texts, [item.group for _, item in documents]


def split(texts: Sequence[Text], fold_of: IntArray, fold: int) -> Traffic:
    """One fold held out."""
    return Traffic(
        [text for text, other in zip(texts, fold_of, strict=True) if other != fold],
        [text for text, other in zip(texts, fold_of, strict=True) if other == fold],
    )


def paths(texts: Sequence[Text]) -> list[str]:
    """Every node of the tree, parents before children."""
    found = {ROOT}
    for path in {text.path for text in texts}:
        while path:
            found.add(path)
            path = parent_path(path)
    return sorted(found)


def is_within(path: str, node: str) -> bool:
    """Whether a domain is `node` or below it."""
    return not node or path == node or path.startswith(f"{node}/")


def source(tenant: str, texts: Sequence[Text]) -> Source:
    """What a tenant's texts, or an exempt corpus (no tenant), count."""
    keys = answering_keys(np.concatenate([np.empty(0, np.int64), *(t.keys for t in texts)]))
    keys, counts = np.unique(keys, return_counts=True)
    weights = counts.astype(np.float64)
    totals = np.bincount(order_of(keys), weights, MAX_ORDER + 1)[1:]
    return Source(tenant, keys, weights, totals.astype(np.float64))


def corpus_counts(texts: Sequence[Text], nodes: Sequence[str]) -> dict[str, NodeCounts]:
    """Each node's counts where an admin gave every domain its texts as a corpus."""
    own = {
        path: source("", [text for text in texts if text.path == path])
        for path in {text.path for text in texts}
    }
    return {
        node: combine(
            [_added([own[path] for path in sorted(own) if is_within(path, node)])],
            is_private=False,
            min_tenants=3,
        )
        for node in nodes
    }


def _added(sources: Sequence[Source]) -> Source:
    keys, counts = merge_counts(
        [s.keys for s in sources], [s.weights.astype(np.int64) for s in sources]
    )
    totals = sum((s.totals for s in sources), np.zeros(MAX_ORDER))
    return Source("", keys, counts.astype(np.float64), totals)
