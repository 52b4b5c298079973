"""What all of the benchmark's parts measure on: texts in folds, a root, the nodes.

Knows where they come from; measures nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks import datasets
from benchmarks.trees import texts
from benchmarks.trees.texts import Text, Traffic
from services.common.ngram_counts import NgramCounts
from services.common.ngrams import IntArray
from services.knowledge_store.tree import NodeCounts


@dataclass(frozen=True)
class Fold:
    """One fold's traffic and what each node counts of it."""

    traffic: Traffic
    counts: dict[str, NodeCounts]
    held_out_counts: dict[str, NodeCounts]


@dataclass(frozen=True)
class World:
    """Texts, the fold of each, the root's keys, and the folds that are measured."""

    texts: Sequence[Text]
    fold_of: IntArray
    root: IntArray
    measured: range

    @cached_property
    def nodes(self) -> list[str]:
        """Every node's path, parents first."""
        return texts.paths(self.texts)

    @cached_property
    def leaves(self) -> list[str]:
        """Domains that texts are sent to."""
        return sorted({text.path for text in self.texts})

    @cached_property
    def folds(self) -> list[Fold]:
        """The measured folds, counted."""
        return list(self._folds())

    def _folds(self) -> Iterator[Fold]:
        for number in self.measured:
            traffic = texts.split(self.texts, self.fold_of, number)
            yield Fold(
                traffic,
                texts.corpus_counts(traffic.counted, self.nodes),
                texts.corpus_counts(traffic.held_out, self.nodes),
            )

    @property
    def described(self) -> str:
        """For the report."""
        num_tokens = sum(len(text.keys) for text in self.texts)
        return (
            f"{len(self.texts):,} texts, {num_tokens:,} tokens (cut at {texts.MAX_TOKENS}), "
            f"{len(self.measured)} of 5 folds held out in turn; root of {len(self.root):,} keys"
        )


def root_keys(path: Path) -> IntArray:
    """The keys that an encoder's root begins with.

    Raises:
        Missing: There is no such file.
    """
    if not path.is_file():
        raise datasets.Missing(
            f"{path} is missing: `hmi distill` writes it beside its encoder; name another with "
            "--root-keys FILE"
        )
    return NgramCounts.from_bytes(path.read_bytes()).keys.copy()
