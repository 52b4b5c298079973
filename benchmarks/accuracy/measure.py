"""Runs the comparison: every subject trained on every fold of every task, and left untrained.

Knows the order of work and what comes out of it; does not know goals or intervals.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.accuracy.learner import RECIPES, Dealer, Model, embed, score, train
from benchmarks.accuracy.subjects import Encoders, Subject
from benchmarks.accuracy.tables import hit_shares
from benchmarks.accuracy.tasks import Limits, Task, load
from services.common.ngrams import IntArray

NUM_NEIGHBOURS = 10
_SAMPLE_SEED = 4


@dataclass
class Outcome:
    """What came of one row of a task.

    Attributes:
        right: Labels that are right, by text, `[texts]`; texts of unmeasured folds are absent.
        shared: Of each text's ten nearest neighbours, those that the base finds too.
        hits: Share of tokens answered by an n-gram of each order; empty where nothing backs off.
    """

    right: IntArray
    shared: IntArray
    hits: dict[int, float] = field(default_factory=dict)


@dataclass
class TaskOutcome:
    """What came of a task, by row: `base`, `hMiniLM, compute`, …; arrays are alike in all rows.

    Attributes:
        asked: Labels of each text.
        groups, folds: Of each text.
    """

    name: str
    num_tokens: int
    asked: IntArray
    groups: IntArray
    folds: IntArray
    rows: dict[str, Outcome] = field(default_factory=dict)


def measure_alone(
    directory: Path,
    controls: Path | None,
    limits: Mapping[str, Limits],
    folds: range,
    only: frozenset[str],
    name: str,
) -> TaskOutcome:
    """One task in a process of its own, on one thread: such small products gain little by more.

    Args:
        directory, controls: As `Encoders` takes them.
        limits: By task.
    """
    torch.set_num_threads(1)
    return measure(Encoders.of(directory, controls), name, limits[name], folds, only)


def measure(
    encoders: Encoders, name: str, limits: Limits, folds: range, only: frozenset[str]
) -> TaskOutcome:
    """One task.

    Args:
        folds: Those that are measured.
        only: As `Encoders.subjects` takes it.
    """
    task = load(name, limits)
    dealer = Dealer(task)
    tested = np.flatnonzero(np.isin(task.fold_of, list(folds)))
    outcome = TaskOutcome(
        name,
        int(task.lengths.sum()),
        np.zeros(len(tested), np.int64),
        task.groups[tested],
        task.fold_of[tested],
    )
    neighbours: Tensor | None = None
    began = time.monotonic()
    for subject in encoders.subjects(task, only):
        print(f"{time.monotonic() - began:6.0f} s  {name}: {subject.name}", file=sys.stderr)
        by_text = _ask(subject, task, dealer, limits, folds)
        scores = np.array([by_text[int(text)] for text in tested])
        outcome.asked = scores[:, 1]
        near = nearest(_embedded(subject, task, dealer, tested))
        neighbours = near if neighbours is None else neighbours
        row = Outcome(scores[:, 0], overlap(near, neighbours), _hits(task, subject.asked))
        outcome.rows[subject.name] = row
    return outcome


def _ask(
    subject: Subject, task: Task, dealer: Dealer, limits: Limits, folds: range
) -> dict[int, tuple[int, int]]:
    """Scores by text: one adapter a fold, asked about what is held out."""
    found: dict[int, tuple[int, int]] = {}
    recipe = RECIPES[task.name]
    for fold in folds:
        chance = np.random.default_rng([_SAMPLE_SEED, fold])
        learnt = chance.permutation(np.flatnonzero(task.fold_of != fold))[: limits.learnt]
        model = Model(subject.upper, subject.split, task, seed=fold)
        train(model, subject.inputs, dealer, learnt, recipe, subject.learning[fold], seed=fold)
        held_out = np.flatnonzero(task.fold_of == fold)
        found |= score(model, subject.inputs, dealer, held_out, subject.asked[fold])
    return found


def _embedded(subject: Subject, task: Task, dealer: Dealer, tested: IntArray) -> Tensor:
    """Embeddings of the tested texts, each looked up where its fold was held out."""
    vectors = torch.empty(len(tested), subject.upper.config.hidden_size)
    for fold in np.unique(task.fold_of[tested]):
        is_here = task.fold_of[tested] == fold
        vectors[torch.from_numpy(is_here)] = embed(
            subject.upper,
            subject.split,
            subject.inputs,
            dealer,
            tested[is_here],
            subject.asked[fold],
        )
    return vectors


def nearest(vectors: Tensor) -> Tensor:
    """Each vector's ten nearest others by cosine, `[n, 10]`; vectors have length 1."""
    num_neighbours = min(NUM_NEIGHBOURS, len(vectors) - 1)
    parts = []
    for begin in range(0, len(vectors), 1024):
        likeness = vectors[begin : begin + 1024] @ vectors.T
        own = torch.arange(len(likeness))
        likeness[own, begin + own] = -2
        parts.append(likeness.topk(num_neighbours, dim=1).indices)
    return torch.cat(parts)


def overlap(found: Tensor, wanted: Tensor) -> IntArray:
    """How many neighbours two lists `[n, 10]` share, `[n]`."""
    shared: IntArray = (found[:, :, None] == wanted[:, None, :]).any(2).sum(1).numpy()
    return shared


def _hits(task: Task, views: list[IntArray | None]) -> dict[int, float]:
    told = [view for view in views if view is not None]
    return hit_shares(task, told) if told else {}
