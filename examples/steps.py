"""How the demonstration shows what it is doing. Knows the terminal; does not know the steps."""

from __future__ import annotations

import threading

from rich.console import Console
from rich.progress import Progress as Bars
from rich.progress import TaskID

from services.executor.train import Progress, ProgressBar, TrainReport
from services.executor.train.progress import NoProgress, bars_on


class Steps:
    """Shows what is going on: bars on a terminal, a plain line a step in a file or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: Bars | None = bars_on(console) if console.is_terminal else None
        self._tasks: dict[str, TaskID] = {}

    def begin(self, title: str, *, total: int | None, status: str) -> None:
        """A step begins; of `total` parts, if their number is known."""
        if self._bars is None:
            self._say(f"{title}: {status}")
        else:
            self._tasks[title] = self._bars.add_task(title, total=total, status=status)

    def advance(self, title: str, *, status: str) -> None:
        """A part of a step is done; the only one, if their number was not known."""
        if self._bars is None:
            self._say(f"{title}: {status}")
            return
        task = self._tasks[title]
        if self._bars.tasks[self._bars.task_ids.index(task)].total is None:
            self._bars.update(task, total=1)
        self._bars.update(task, advance=1, status=status)

    def training(self, title: str) -> Progress:
        """How one training is shown while it runs."""
        return NoProgress() if self._bars is None else ProgressBar(title, self._bars)

    def trained(self, title: str, report: TrainReport) -> None:
        """A training is over; its bar, if there is one, says so itself."""
        if self._bars is None:
            metrics = ", ".join(f"{name} {value:.3f}" for name, value in report.metrics.items())
            self._say(f"{title}: trained in {report.duration_s:.0f} s, {metrics}")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Steps:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()


class Stopped(Exception):
    """A training was ended because the demonstration has failed elsewhere."""


class Stoppable:
    """Ends a training when it is told to; passes on everything else."""

    def __init__(self, shown: Progress, stop: threading.Event) -> None:
        self.note = shown.note
        self.start = shown.start
        self.epoch = shown.epoch
        self.finish = shown.finish
        self._step = shown.step
        self._stop = stop

    def step(self, loss: float) -> None:
        if self._stop.is_set():
            raise Stopped
        self._step(loss)
