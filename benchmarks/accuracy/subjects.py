"""What is compared: the unsplit base, split bases, and controls, each as inputs and upper layers.

Knows files of encoders; does not know how anything is trained or judged.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from benchmarks import datasets
from benchmarks.accuracy import dropping
from benchmarks.accuracy.inputs import (
    FULL,
    UNIGRAM,
    Inputs,
    LookedUp,
    backed_off,
    of_base,
)
from benchmarks.accuracy.tables import domain_rows, repeated
from benchmarks.accuracy.tasks import NUM_FOLDS, Task
from hmi.bases import minilm_directory
from services.common.local_encoder_format import FILE_NAME
from services.common.ngram_counts import NgramCounts
from services.common.ngrams import IntArray
from services.executor.construct.local_file import load_local
from services.executor.construct.run import ROOT_KEYS
from services.executor.device import pick_dtype
from services.executor.models.encoder import Encoder, load_base
from services.executor.models.local_encoder import LocalEncoder

CONTROLS = "controls.json"
BASE, OURS, ADAPTED = "base", "hMiniLM", "hMiniLM adapted"
COMPUTE, BACKOFF, SINGLETONS = "compute", "backoff", "backoff with singletons"
ALPHAS = {BACKOFF: 0.5, SINGLETONS: 1.0}

View = IntArray | None


@dataclass(frozen=True)
class Subject:
    """One row of the report.

    Attributes:
        kind: What it is an encoder of; `--only` goes by it.
        view: What stands for n-grams that tables lack; empty where there are none.
        upper: Its layers from `split` on are trained on.
        learning, asked: What tokens are seen as in training and when held out, by fold.
    """

    kind: str
    view: str
    upper: Encoder
    split: int
    inputs: Inputs
    learning: list[View]
    asked: list[View]

    @property
    def name(self) -> str:
        """The row's."""
        return f"{self.kind}, {self.view}" if self.view else self.kind


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

    @classmethod
    def of(cls, directory: Path, controls: Path | None) -> Self:
        """Of MiniLM, in the type that this machine computes fastest."""
        cpu = torch.device("cpu")
        base = load_base(minilm_directory(), dtype=pick_dtype("auto", cpu), device=cpu)
        return cls(base, directory, controls)

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

    def subjects(self, task: Task, only: frozenset[str]) -> Iterator[Subject]:
        """All that can be compared on a task, the base first; each is made when it is asked for.

        Args:
            only: Kinds; empty: all. The base always is.
        """
        names = self.described.get("encoders", [])
        split = self.ours.split
        yield self._without_tables(BASE, self.base, split, of_base(self.base, task, split))
        kinds: dict[str, Callable[[], Iterator[Subject]]] = {OURS: lambda: self._ours(task)}
        for name in ("centre", "sum", "unigram", "dropped"):
            if name in names:
                kinds[name] = partial(self._control_of, name, task)
        if f"adapted-{task.name}" in names:
            kinds[ADAPTED] = lambda: self._adapted(task)
        for kind, subjects in kinds.items():
            if not only or kind in only:
                yield from subjects()

    def _ours(self, task: Task) -> Iterator[Subject]:
        keys, root = task.keys, self.root
        yield from self._split(
            OURS,
            [self.ours],
            task,
            (COMPUTE, BACKOFF, SINGLETONS),
            lambda rows: backed_off(keys, np.union1d(root, rows)),
        )

    def _adapted(self, task: Task) -> Iterator[Subject]:
        keys, root = task.keys, self.root
        yield from self._split(
            ADAPTED,
            [self._control(f"adapted-{task.name}"), self.ours],
            task,
            (COMPUTE, BACKOFF),
            lambda rows: backed_off(keys, root, rows),
        )

    def _control_of(self, name: str, task: Task) -> Iterator[Subject]:
        split = self.ours.split
        if name == "dropped":
            upper = dropping.load(_there(self.controls) / name, self.base, split)
            yield self._without_tables(name, upper, split, of_base(self.base, task, 0))
            return
        local = self._control(name)
        seen = UNIGRAM if name == "unigram" else FULL
        view = "" if name == "unigram" else COMPUTE
        always: list[View] = [np.full(len(task.keys), seen)] * NUM_FOLDS
        inputs = LookedUp([local], task.keys)
        yield Subject(name, view, self.base, split, inputs, always, always)

    def _control(self, name: str) -> LocalEncoder:
        return load_local(_file(_there(self.controls) / name, FILE_NAME), self.base)

    def _without_tables(self, kind: str, upper: Encoder, split: int, inputs: Inputs) -> Subject:
        nothing: list[View] = [None] * NUM_FOLDS
        return Subject(kind, "", upper, split, inputs, nothing, nothing)

    def _split(
        self,
        kind: str,
        encoders: list[LocalEncoder],
        task: Task,
        views: Sequence[str],
        backed: Callable[[IntArray], IntArray],
    ) -> Iterator[Subject]:
        """Encoders as they are served: trained and asked under one policy.

        Args:
            backed: From the rows of a domain's table to what tokens are seen as.
        """
        inputs = LookedUp(encoders, task.keys)
        folds = range(NUM_FOLDS)
        others = [repeated(task, fold) for fold in folds] if len(views) > 1 else []
        for view in views:
            if view == COMPUTE:
                full: list[View] = [np.full(len(task.keys), FULL)] * NUM_FOLDS
                yield Subject(kind, view, self.base, encoders[0].split, inputs, full, full)
                continue
            rows = [domain_rows(task, fold, ALPHAS[view]) for fold in folds]
            learning = [backed(np.intersect1d(*pair)) for pair in zip(rows, others, strict=True)]
            asked = [backed(held) for held in rows]
            yield Subject(kind, view, self.base, encoders[0].split, inputs, [*learning], [*asked])


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
