"""Why hindsight answers more: other choices of the same size, none of which has seen what is asked.

Knows what a selector could know at most; does not know other shapes of a tree. An oracle that picks
by the very texts it is judged on also picks what came by chance. Each choice here is made without
them, so what it answers is what a better rule than counting could bring.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.report import Report
from benchmarks.resampling import ratio_of_sums
from benchmarks.trees.lookups import Tables, look_up
from benchmarks.trees.tables import Choice, Worth, as_large, counted, selected, storable
from benchmarks.trees.texts import ROOT, Text, corpus_counts
from benchmarks.trees.world import Fold, World
from services.common.ids import parent_path
from services.common.ngrams import IntArray, order_of
from services.common.sorted_keys import FloatArray
from services.knowledge_store.tree import NodeCounts

ALPHAS = (0.3, 0.5, 0.7)
_ORDERS = {3: "trigram", 2: "trigram or bigram"}
_PRIOR = 0.3  # what its parent's other domains say of an n-gram, beside its own count
# Bounds of the classes of counts between which the fitted rule tells.
_CLASSES = np.array([1, 2, 3, 4, 6, 9, 14, 20, 40, 80])
_DOUBT = 5.0  # n-grams a class must have for its mean to count half
_HELD_OUT = 0.25  # held-out occurrences for each counted one, of four folds and one

SMOOTHED = "counts smoothed by the parent's"
FITTED = "expected by counts here, in the parent and the root, as another fold taught"
HALF = "an oracle of one half of the held-out texts, on the other"
BOTH = "counts and that half together, on the other"


@dataclass
class _Answered:
    """Tokens of each text that rows below the root answered, by the tree's rows and by others'."""

    tree: list[IntArray] = field(default_factory=list)
    other: list[IntArray] = field(default_factory=list)


def measure(world: World, report: Report) -> None:
    """What the tree answers as a part of what each other choice does."""
    folds = world.folds
    for alpha in ALPHAS:
        answered: dict[str, _Answered] = {}
        for number, fold in enumerate(folds):
            tree = selected(world.nodes, fold.counts, world.root, Choice(alpha))
            taught_by = folds[(number + 1) % len(folds)] if len(folds) > 1 else None
            for name, (worth, texts) in _choices(fold, taught_by, world.nodes, number).items():
                other = as_large(tree, storable(fold.counts, alpha), worth)
                both = answered.setdefault(name, _Answered())
                both.tree.append(_below_root(texts, tree))
                both.other.append(_below_root(texts, other))
        for name, both in answered.items():
            _report(report, f"alpha {alpha:g}: hits", name, both)
    report.note(
        "choices without hindsight: as many rows of each order in each node as the tree has, among "
        "the n-grams that selection may store; hits of rows below the root"
    )


def _choices(
    fold: Fold, taught_by: Fold | None, nodes: Sequence[str], seed: int
) -> dict[str, tuple[Worth, Sequence[Text]]]:
    """How each values n-grams, and the texts it is judged on."""
    held_out = fold.traffic.held_out
    is_seen = np.random.default_rng(seed).random(len(held_out)) < 0.5
    seen = [text for text, known in zip(held_out, is_seen, strict=True) if known]
    unseen = [text for text, known in zip(held_out, is_seen, strict=True) if not known]
    half = counted(corpus_counts(seen, nodes))
    own = counted(fold.counts)
    choices: dict[str, tuple[Worth, Sequence[Text]]] = {
        SMOOTHED: (smoothed(fold.counts), held_out),
        HALF: (half, unseen),
        BOTH: (lambda path, keys: own(path, keys) + half(path, keys), unseen),
    }
    if taught_by is not None:
        choices[FITTED] = (fitted(fold, taught_by), held_out)
    return choices


def smoothed(counts: dict[str, NodeCounts]) -> Worth:
    """A node's own count, and what the rest of its parent would have it be (Jelinek and Mercer)."""
    own = counted(counts)

    def worth(path: str, keys: IntArray) -> FloatArray:
        parent = parent_path(path)
        orders = order_of(keys) - 1
        tokens = counts[path].totals[orders]
        others = np.maximum(1.0, counts[parent].totals[orders] - tokens)
        return own(path, keys) + _PRIOR * tokens * (own(parent, keys) - own(path, keys)) / others

    return worth


def fitted(fold: Fold, taught_by: Fold) -> Worth:
    """How often n-grams that were counted as often came in another fold's held-out texts: what any
    rule could make of counts, or nearly."""

    def worth(path: str, keys: IntArray) -> FloatArray:
        known = taught_by.counts[path].keys
        came = counted(taught_by.held_out_counts)(path, known)
        taught, asked = _class_of(taught_by, path, known), _class_of(fold, path, keys)
        size = int(max(taught.max(), asked.max(initial=0))) + 1
        numbers, sums = np.bincount(taught, minlength=size), np.bincount(taught, came, size)
        own = counted(fold.counts)(path, keys)
        guess = (sums[asked] + _DOUBT * _HELD_OUT * own) / (numbers[asked] + _DOUBT)
        return np.asarray(guess + 1e-6 * own)

    return worth


def _class_of(fold: Fold, path: str, keys: IntArray) -> IntArray:
    """By order, own count, and those of the rest of the parent and of the root."""
    of = counted(fold.counts)
    own = of(path, keys)
    classes = order_of(keys)
    for count in (own, of(parent_path(path), keys) - own, of(ROOT, keys) - own):
        classes = classes * (len(_CLASSES) + 1) + np.digitize(count, _CLASSES)
    return np.asarray(classes)


def _below_root(texts: Sequence[Text], tables: Tables) -> IntArray:
    return look_up(texts, tables, beside=tables[ROOT]).by_order


def _report(report: Report, figure: str, name: str, both: _Answered) -> None:
    tree, other = np.concatenate(both.tree), np.concatenate(both.other)
    for order, said in _ORDERS.items():
        value = ratio_of_sums(tree[:, order:].sum(1), other[:, order:].sum(1))
        report.add(f"{figure} by a {said} below the root, tree ÷ {name}", value, "")
