"""Shows a run of construction. Knows how to draw, not how learning goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import fmean
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from services.executor.construct.distill import State

_LATELY = 50  # steps that the shown loss is the mean of
_LINE_S = 30.0


class Watcher:
    """What a run tells whoever watches; this one keeps it to itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Nothing to put away."""

    def reading(self, num_bytes: int, num_total: int) -> None:
        """Bytes of the corpus tokenized so far, and in all."""

    def learning(self, state: State, num_tokens: int) -> None:
        """Where learning is, and how many tokens there are to learn from."""


class Lines(Watcher):
    """A plain line now and then, for a log.

    Args:
        write: Takes a line.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written_at = 0.0

    def learning(self, state: State, num_tokens: int) -> None:
        if time.monotonic() - self._written_at < _LINE_S and state.num_tokens < num_tokens:
            return
        self._written_at = time.monotonic()
        speed = state.num_tokens / max(state.seconds, 1e-9)
        self._write(
            f"step {state.step}: {state.num_tokens:,} of {num_tokens:,} tokens, "
            f"loss {fmean(state.losses[-_LATELY:]):.4f}, {speed:,.0f} tokens/s"
        )


class Bar(Watcher):
    """A bar for reading, then one for learning."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=Console(stderr=True),
        )
        self._reading: TaskID | None = None
        self._learning: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bars.stop()

    def reading(self, num_bytes: int, num_total: int) -> None:
        if self._reading is None:
            self._reading = self._bars.add_task("reading", total=num_total, status="")
        self._bars.update(self._reading, completed=num_bytes, total=num_total)

    def learning(self, state: State, num_tokens: int) -> None:
        if self._learning is None:
            self._learning = self._bars.add_task("learning", total=num_tokens, status="")
        status = f"loss {fmean(state.losses[-_LATELY:]):.4f}"
        self._bars.update(self._learning, completed=state.num_tokens, status=status)
