"""A test facility: end this process at a named point, as a crash would.

`"after_submit=kill@20,before_event=random:0.01"`: a point, then what happens there. `kill@N` ends
the process at the N-th item that reaches the point, `random:P` with probability P at each, and
`once:PATH` at the first while there is a file PATH, which it deletes: of all processes that share
the file one ends, and lives on when it is started again. Where a message or a batch carries several
items, the process ends before any of it is done. Knows counters and such files; does not know what
happens at a point. Off by default, and then a point costs one call of an empty function.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Collection
from pathlib import Path

EXIT_STATUS = 86

Reach = Callable[[str, int], None]


def _kill() -> None:
    os._exit(EXIT_STATUS)


def off(_point: str, _num_items: int) -> None:
    """Reach a point while failpoints are off."""


class Failpoints:
    """Armed points.

    Args:
        plan: As in this module's docstring.
        points: The points there are.
        kill: What ends the process.

    Raises:
        ValueError: `plan` names no such point or action.
    """

    def __init__(
        self, plan: str, points: Collection[str], kill: Callable[[], None] = _kill
    ) -> None:
        self._kill = kill
        self._num_left: dict[str, int] = {}
        self._probability: dict[str, float] = {}
        self._files: dict[str, Path] = {}
        for entry in filter(None, (part.strip() for part in plan.split(","))):
            point, _, action = entry.partition("=")
            if point not in points:
                raise ValueError(f"no failpoint {point!r}; there are {', '.join(points)}")
            if action.startswith("kill@"):
                self._num_left[point] = int(action.removeprefix("kill@"))
            elif action.startswith("random:"):
                self._probability[point] = float(action.removeprefix("random:"))
            elif action.startswith("once:/"):
                self._files[point] = Path(action.removeprefix("once:"))
            else:
                raise ValueError(
                    f"failpoint {entry!r}: the action must be kill@N, random:P or once:/PATH"
                )

    def reach(self, point: str, num_items: int) -> None:
        """Say that items have come to a point; ends the process if it was told to."""
        if point in self._num_left:
            self._num_left[point] -= num_items
            if self._num_left[point] <= 0:
                self._kill()
        if point in self._files and _take(self._files[point]):
            self._kill()
        probability = self._probability.get(point, 0.0)
        if probability and random.random() < 1 - (1 - probability) ** num_items:  # noqa: S311 no secret
            self._kill()


def _take(path: Path) -> bool:
    """Delete a file; whether this process is the one that did."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def arm(plan: str, points: Collection[str]) -> Reach:
    """The function to call at points: `off` if `plan` is empty.

    Raises:
        ValueError: As `Failpoints`.
    """
    return Failpoints(plan, points).reach if plan.strip() else off
