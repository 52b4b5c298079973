"""Keeps part of the examples out of training. Knows targets, not texts."""

from __future__ import annotations

import random
from collections import Counter

from services.common.errors import InvalidArgument
from services.executor.train.data import Example, Examples
from services.executor.train.options import Task

_NUM_BINS = 10


def split(examples: Examples, held_out: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Training part and held-out part, stratified and the same for the same seed.

    Examples are ordered by stratum (at random within one) and every (1 / held_out)-th is held out,
    so each stratum gives its share. With held_out <= 0.5 no two neighbours are held out: a stratum
    of two or more keeps an example for training, and the only example of one always does.

    Raises:
        InvalidArgument: so few examples that none could be held out.
    """
    strata = _strata(examples)
    sizes = Counter(strata)
    rng = random.Random(seed)  # noqa: S311 (reproducible by intent)
    order = list(range(len(strata)))
    rng.shuffle(order)
    candidates = sorted((i for i in order if sizes[strata[i]] > 1), key=lambda i: strata[i])
    offset = rng.random()
    chosen = {
        i
        for place, i in enumerate(candidates)
        if int(place * held_out + offset) != int((place + 1) * held_out + offset)
    }
    if not chosen and candidates:
        chosen = {candidates[0]}
    if not chosen:
        raise InvalidArgument("data", _why_none(examples))
    items = examples.items
    return [items[i] for i in order if i not in chosen], [items[i] for i in sorted(chosen)]


def _why_none(examples: Examples) -> str:
    """Why none can be held out, when all strata are of one example."""
    if examples.task is Task.REGRESSION:
        return (
            f"{len(examples.items)} examples are too few: none can be held out of training; "
            f"{_NUM_BINS + 1} or more are needed"
        )
    return (
        f"every label has one example only ({len(examples.labels)} labels): none can be held out "
        "of training; is the column of labels the right one?"
    )


def _strata(examples: Examples) -> list[str]:
    """A key for each example: its class, its rarest label, or its value's decile."""
    if examples.task is Task.REGRESSION:
        ranked = sorted(range(len(examples.items)), key=lambda i: examples.items[i].value)
        bins = {i: rank * _NUM_BINS // len(ranked) for rank, i in enumerate(ranked)}
        return [str(bins[i]) for i in range(len(ranked))]
    label_sets = [set(item.labels) | {s.label for s in item.spans} for item in examples.items]
    counts = Counter(label for labels in label_sets for label in labels)
    return [min(labels, key=lambda x: (counts[x], x), default="") for labels in label_sets]
