"""What is compared: the unsplit base, split bases, and controls, each as inputs and upper layers.

Knows files of encoders; does not know how anything is trained or judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import datasets
from benchmarks.accuracy import dropping
from benchmarks.accuracy.inputs import (
    FULL,
    UNIGRAM,
    Inputs,
    LookedUp,
    backed_off,
    dropped,
    of_base,
)
from benchmarks.accuracy.tables import domain_rows
from benchmarks.accuracy.tasks import NUM_FOLDS, Task
from services.common.local_encoder_format import FILE_NAME
from services.common.ngram_counts import NgramCounts
from services.common.ngrams import IntArray
from services.executor.construct.local_file import load_local
from services.executor.construct.run import ROOT_KEYS
from services.executor.models.encoder import Encoder
from services.executor.models.local_encoder import LocalEncoder

CONTROLS = "controls.json"
BASE, OURS, ADAPTED = "base", "hMiniLM", "hMiniLM adapted"
COMPUTE, BACKOFF, SINGLETONS = "compute", "backoff", "backoff with singletons"
ALPHA = 0.5
_EPOCHS = 3  # training views differ from epoch to epoch

View = IntArray | None


@dataclass(frozen=True)
class Subject:
    """One row of the report, or several that share a training.

    Attributes:
        upper: Its layers from `split` on are trained on.
        learning: What tokens are seen as in training, one an epoch.
        views: By name, what they are seen as when held out, one a fold.
    """

    name: str
    upper: Encoder
    split: int
    inputs: Inputs
    learning: list[View]
    views: Mapping[str, list[View]]


@dataclass(frozen=True)
class Encoders:
    """Where encoders lie.

    Args:
        directory: Of the encoder that is judged: local_encoder.safetensors, root_keys.safetensors.
        controls: What `accuracy-controls` made, if it was run.
    """

    base: Encoder
    directory: Path
    controls: Path | None

    @property
    def ours(self) -> LocalEncoder:
        """The encoder that is judged."""
        return load_local(_file(self.directory, FILE_NAME), self.base)

    @property
    def root(self) -> IntArray:
        """Its root's keys."""
        blob = _file(self.directory, ROOT_KEYS).read_bytes()
        return NgramCounts.from_bytes(blob).keys.copy()

    @property
    def described(self) -> dict[str, Any]:
        """What was said of the controls when they were made; empty where there are none."""
        if self.controls is None:
            return {}
        content: dict[str, Any] = json.loads(_file(self.controls, CONTROLS).read_text("utf-8"))
        return content

    def subjects(self, task: Task) -> Iterator[Subject]:
        """All that can be compared on a task, the base first; each is made when it is asked for."""
        ours = self.ours
        inputs = of_base(self.base, task, ours.split)
        yield Subject(BASE, self.base, ours.split, inputs, [None], {"": [None] * NUM_FOLDS})
        keys, root = task.keys, self.root
        views = _views(task, lambda fold, alpha: backed_off(
            keys, np.union1d(root, domain_rows(task, fold, alpha))))  # fmt: skip
        yield self._split(OURS, [ours], task, views)
        if self.controls is None:
            return
        names = self.described["encoders"]
        for form in ("centre", "sum"):
            if form in names:
                yield self._split(form, [self._control(form)], task, views)
        if "unigram" in names:
            yield self._unigram(task)
        if "dropped" in names:
            upper = dropping.load(self.controls / "dropped", self.base, ours.split)
            inputs = of_base(self.base, task, 0)
            yield Subject("dropped", upper, ours.split, inputs, [None], {"": [None] * NUM_FOLDS})
        if f"adapted-{task.name}" in names:
            adapted = self._control(f"adapted-{task.name}")
            views = _views(task, lambda fold, alpha: backed_off(
                keys, root, domain_rows(task, fold, alpha)))  # fmt: skip
            yield self._split(ADAPTED, [adapted, ours], task, views)

    def _control(self, name: str) -> LocalEncoder:
        return load_local(_file(_there(self.controls) / name, FILE_NAME), self.base)

    def _split(
        self, name: str, encoders: list[LocalEncoder], task: Task, views: Mapping[str, list[View]]
    ) -> Subject:
        num_tokens = int(task.lengths.sum())
        chance = np.random.default_rng(0)
        learning: list[View] = [dropped(num_tokens, chance) for _ in range(_EPOCHS)]
        inputs = LookedUp(encoders, task.keys)
        return Subject(name, self.base, encoders[0].split, inputs, learning, views)

    def _unigram(self, task: Task) -> Subject:
        local = self._control("unigram")
        view = np.full(int(task.lengths.sum()), UNIGRAM)
        inputs = LookedUp([local], task.keys)
        return Subject("unigram", self.base, local.split, inputs, [view], {"": [view] * NUM_FOLDS})


def _views(task: Task, backed: Callable[[int, float], IntArray]) -> dict[str, list[View]]:
    full = np.full(int(task.lengths.sum()), FULL)
    return {
        COMPUTE: [full] * NUM_FOLDS,
        BACKOFF: [backed(fold, ALPHA) for fold in range(NUM_FOLDS)],
        SINGLETONS: [backed(fold, 1.0) for fold in range(NUM_FOLDS)],
    }


def _there(directory: Path | None) -> Path:
    if directory is None:
        raise ValueError("there are no controls")
    return directory


def _file(directory: Path, name: str) -> Path:
    path = directory / name
    if not path.is_file():
        raise datasets.Missing(
            f"{path} is missing: `hmi distill` writes encoders, `python -m benchmarks "
            "accuracy-controls` the controls"
        )
    return path
