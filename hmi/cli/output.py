"""How commands print: JSON for programs, tables for people, progress on stderr.

Knows values and the terminal; does not know where values come from.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from hmi.client.uploads import Progress as OnProgress
from hmi.errors import HmiError


def to_json(value: object) -> Any:
    """A value as JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, HmiError):
        return {"error": type(value).__name__, "message": value.message, "field": value.field}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {str(key): to_json(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(one) for one in value]
    return value


def print_json(value: object) -> None:
    """One JSON document on stdout."""
    print(json.dumps(to_json(value), indent=2, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, whole: Collection[str] = ()
) -> None:
    """A table on stdout; texts are shown as they are, markup in them is not read.

    A terminal's width folds it; anywhere else a row is a line, whole.

    Args:
        columns: Titles.
        rows: A value a column.
        whole: Titles of the columns that a terminal does not fold.
    """
    console = Console()
    if not console.is_terminal:
        _print_lines(columns, rows)
        return
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in whole)
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    console.print(table)


def _print_lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table for a pipe or a file: columns aligned, no line broken nor cut."""
    lines = [list(columns), *([" ".join(_cell(one).splitlines()) for one in row] for row in rows)]
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(map(set_cell_size, line, widths)).rstrip())


def note(text: str) -> None:
    """A line for people, on stderr, so that stdout holds only the result."""
    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text)


def traffic(split: dict[int, int]) -> str:
    """A traffic split in a word, such as `v3 90 %, v2 10 %`."""
    return ", ".join(f"v{version} {percent} %" for version, percent in split.items()) or "none"


@contextmanager
def upload_bar(title: str, *, is_quiet: bool) -> Iterator[OnProgress]:
    """A progress bar of bytes on stderr, as the callback that uploads take."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=is_quiet,
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda num_sent, num_bytes: bar.update(task, completed=num_sent, total=num_bytes)


@contextmanager
def waiting(title: str, *, is_quiet: bool) -> Iterator[None]:
    """A line on stderr that moves while something is waited for, with the seconds that took."""
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=is_quiet,
    )
    with bar:
        bar.add_task(title, total=None)
        yield


def size(num_bytes: float) -> str:
    """Bytes as people read them, such as `12.3 MiB`."""
    for unit in ("B", "KiB", "MiB"):
        if abs(num_bytes) < 1024:
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M")
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Enum):
        return str(value.value)
    return str(value)
