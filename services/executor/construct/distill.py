"""Learns a local encoder from its base, on text: stage 1 (general) and stage 2 (a domain).

Knows steps, schedule and checkpoints; the loss is `student.py`'s, the text `texts.py`'s. A run
that ends early goes on where its last checkpoint was, and ends with the same weights; a longer run
on the same text goes on from where a shorter one began to slow down.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.executor.construct.judge import Fidelity, judge
from services.executor.construct.shown import Texts, drop_outer
from services.executor.construct.student import Student
from services.executor.construct.texts import Pieces

CHECKPOINT = "checkpoint.pt"
STEADY_CHECKPOINT = "checkpoint-steady.pt"  # as the learning rate began to fall
_WEIGHT_DECAY = 0.01
_MAX_GRADIENT_NORM = 1.0
_FALL = 0.2  # of the tokens, at the end
_CHECKPOINT_S = 120.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn.

    Attributes:
        num_tokens: To learn from, counted with repeats; the last batch may go over.
        batch_tokens: A step's.
        learning_rate: The highest; it rises over the warm-up, stands, and falls to 0 over the
            last fifth, each linearly.
        warm_up_tokens: The warm-up's.
        seed: Of everything random.
    """

    num_tokens: int
    batch_tokens: int = 4096
    learning_rate: float = 4e-4
    warm_up_tokens: int = 400_000
    seed: int = 0

    @property
    def num_steady_tokens(self) -> float:
        """Tokens after which the learning rate falls."""
        return (1 - _FALL) * self.num_tokens

    def rate(self, num_tokens: int) -> float:
        """The learning rate after this many tokens."""
        rise = (num_tokens + self.batch_tokens) / self.warm_up_tokens
        fall = (self.num_tokens - num_tokens) / (_FALL * self.num_tokens)
        return self.learning_rate * max(0.0, min(rise, 1.0, fall))


@dataclass(slots=True)
class State:
    """Where a run is."""

    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; the student holds the weights."""

    state: State
    fidelity: dict[str, Fidelity]


def distill(
    student: Student,
    base_token_ids: tuple[int, int],
    pieces: Pieces,
    held_out: Pieces,
    schedule: Schedule,
    *,
    subject: str,
    directory: Path,
    on_step: Callable[[State], None] = lambda _state: None,
) -> Outcome:
    """Teach the student until the schedule's tokens are used up.

    Args:
        subject: Tells what is learnt from what: a checkpoint of another subject is not continued.
        base_token_ids: What begins and ends a text: [CLS] and [SEP].
        directory: Holds the checkpoint.
    """
    run = _Run(student, f"{subject} from {pieces.digest}", schedule, directory)
    run.resume()
    batches = pieces.batches(schedule.batch_tokens, schedule.seed)
    for _ in range(run.state.step):
        next(batches)
    while run.state.num_tokens < schedule.num_tokens:
        rows = pieces.rows(next(batches), *base_token_ids)
        run.learn(rows, separator=base_token_ids[1])
        on_step(run.state)
    run.save()
    return Outcome(run.state, judge(student, held_out, base_token_ids))


class _Run:
    """The optimizer, its schedule and the checkpoint."""

    def __init__(self, student: Student, subject: str, schedule: Schedule, directory: Path) -> None:
        self._student = student
        self._subject = subject
        self._schedule = schedule
        self._directory = directory
        self._optimizer = torch.optim.AdamW(
            student.trained,
            lr=schedule.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=_WEIGHT_DECAY,
        )
        self._saved_at = time.monotonic()
        self._was_steady = True
        self.state = State()

    def learn(self, rows: list[NDArray[np.int64]], *, separator: int) -> None:
        """One step."""
        started = time.monotonic()
        rng = np.random.default_rng([self._schedule.seed, 3, self.state.step])
        texts = Texts.to_learn(rows, separator, self._student.device, rng)
        self._optimizer.param_groups[0]["lr"] = self._schedule.rate(self.state.num_tokens)
        loss = self._student.loss(texts, drop_outer(texts.slots, rng))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._student.trained, _MAX_GRADIENT_NORM)
        self._optimizer.step()
        state = self.state
        state.step += 1
        state.num_tokens += texts.num_tokens
        state.seconds += time.monotonic() - started
        state.losses.append(loss.item())
        is_steady = state.num_tokens < self._schedule.num_steady_tokens
        if self._was_steady and not is_steady:
            self.save(STEADY_CHECKPOINT)
        self._was_steady = is_steady
        if time.monotonic() - self._saved_at > _CHECKPOINT_S:
            self.save()

    def save(self, name: str = CHECKPOINT) -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            "subject": self._subject,
            "schedule": asdict(self._schedule),
            "state": asdict(self.state),
            "tensors": {name: value.detach() for name, value in self._student.tensors.items()},
            "optimizer": self._optimizer.state_dict(),
        }
        path = self._directory / name
        temporary = path.with_suffix(".part")
        torch.save(content, temporary)
        temporary.replace(path)
        self._saved_at = time.monotonic()

    def resume(self) -> None:
        """Go on from the latest checkpoint that a run of this schedule would have passed."""
        for name in (CHECKPOINT, STEADY_CHECKPOINT):
            path = self._directory / name
            if path.is_file() and self._take(path):
                return

    def _take(self, path: Path) -> bool:
        content: dict[str, Any] = torch.load(
            path, weights_only=True, map_location=self._student.device
        )
        if content["subject"] != self._subject:
            return False
        schedule, state = Schedule(**content["schedule"]), State(**content["state"])
        is_same = schedule == self._schedule
        # Until the rate falls, schedules that differ in their length alone are one.
        as_long = replace(schedule, num_tokens=self._schedule.num_tokens)
        steady = min(schedule.num_steady_tokens, self._schedule.num_steady_tokens)
        is_common = as_long == self._schedule and state.num_tokens <= steady + schedule.batch_tokens
        if not (is_same or is_common):
            return False
        tensors: dict[str, Tensor] = content["tensors"]
        with torch.no_grad():
            for name, tensor in self._student.tensors.items():
                tensor.copy_(tensors[name])
        self._optimizer.load_state_dict(content["optimizer"])
        self.state = state
        self._was_steady = state.num_tokens < self._schedule.num_steady_tokens
        return True
