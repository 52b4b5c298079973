"""Shows a run on the terminal. Knows how to draw, not how training goes."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from services.executor.train.options import Epoch


class NoProgress:
    """Shows nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def start(self, num_steps: int) -> None:
        """Nothing."""

    def step(self, loss: float) -> None:
        """Nothing."""

    def epoch(self, done: Epoch) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class EpochLines:
    """A plain line an epoch, for a log.

    Args:
        title: What is being trained.
        write: Takes a line.
    """

    def __init__(self, title: str, write: Callable[[str], None]) -> None:
        self._title = title
        self._write = write

    def note(self, text: str) -> None:
        self._write(f"{self._title}: {text}")

    def start(self, num_steps: int) -> None:
        """Nothing."""

    def step(self, loss: float) -> None:
        """Nothing."""

    def epoch(self, done: Epoch) -> None:
        self._write(f"{self._title}: {_line(done)}")

    def finish(self) -> None:
        """Nothing."""


class ProgressBar:
    """A bar with the loss of the last step and the metrics of the last epoch.

    On a display of its own, a line an epoch is left above it.

    Args:
        title: What is being trained.
        bars: Draw among these bars (several runs, one display); None draws a display of its own.
    """

    def __init__(self, title: str, bars: Bars | None = None) -> None:
        self._owns_bars = bars is None
        self._bars = bars or bars_on(Console(stderr=True))
        self._title = title
        self._metrics = ""
        self._task: TaskID | None = None

    def note(self, text: str) -> None:
        self._print(text)

    def start(self, num_steps: int) -> None:
        if self._owns_bars:
            self._bars.start()
        self._task = self._bars.add_task(self._title, total=num_steps, status="")

    def step(self, loss: float) -> None:
        if self._task is not None:
            self._bars.update(self._task, advance=1, status=f"loss {loss:.3f}  {self._metrics}")

    def epoch(self, done: Epoch) -> None:
        if self._owns_bars:
            self._print(_line(done))
        self._metrics = f"epoch {done.number} of {done.num_epochs}: {shown(done.metrics)}"
        if self._task is not None:
            self._bars.update(self._task, status=self._metrics)

    def finish(self) -> None:
        if self._task is not None:
            # An early stop is a finish, not a bar that hangs.
            total = self._bars.tasks[self._bars.task_ids.index(self._task)].total
            self._bars.update(self._task, completed=total)
        if self._owns_bars:
            self._bars.stop()

    def _print(self, text: str) -> None:
        console = self._bars.console
        console.print(f"{self._title}: {text}", markup=False, highlight=False, soft_wrap=True)


def bars_on(console: Console) -> Bars:
    """A display for one or more `ProgressBar`s."""
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[status]}"),
        console=console,
    )


def _line(done: Epoch) -> str:
    best = "; the best so far" if done.is_best else ""
    return (
        f"epoch {done.number} of {done.num_epochs}: loss {done.train_loss:.3f}; held out: loss "
        f"{done.held_out_loss:.3f}, {shown(done.metrics)}{best}"
    )


def shown(metrics: dict[str, float]) -> str:
    """Metrics in a line."""
    return ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
