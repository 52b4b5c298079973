"""Reads labelled examples from CSV or JSON Lines; refuses bad rows by file, line and column.

Columns: `text`, optionally `text_pair`, and one target: `label` (or `labels`), `value` or `spans`.
Knows nothing of tokens or models.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from services.common.errors import InvalidArgument
from services.executor.train.options import Task
from services.executor.train.rows import Row, read_rows

_TARGETS = {"label": "label", "labels": "label", "value": "value", "spans": "spans"}
_COLUMNS = {"text", "text_pair", *_TARGETS}


@dataclass(frozen=True)
class Span:
    """A labelled piece of a text: characters [start, end), counted in Unicode code points."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Example:
    """One text and what is to be predicted of it. Of the targets, the task's one is set."""

    text: str
    where: str
    """`file:line`, for messages."""
    text_pair: str | None = None
    labels: tuple[str, ...] = ()
    value: float = 0.0
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Examples:
    """A file of examples for one task."""

    task: Task
    labels: tuple[str, ...]
    """Sorted labels: classes or span labels; ("value",) for regression."""
    items: tuple[Example, ...]


def read_examples(path: Path, task: Task | None = None) -> Examples:
    """The examples of a file.

    Args:
        path: `.csv` with a header line, or `.jsonl`/`.ndjson`/`.json` with an object a line.
        task: None infers it: `spans` and `value` say so themselves; `label` is multi-label if the
            column is called `labels`, or any cell is a JSON list or contains `|`.

    Raises:
        InvalidArgument: naming `file:line: column` of the first bad row.
    """
    rows = list(read_rows(path))
    if not rows:
        raise InvalidArgument(path.name, "holds no examples")
    column = _target_column(rows)
    task = _choose_task(path, rows, column, task)
    items = tuple(_example(row, column, task) for row in rows)
    return Examples(task, _labels(path, task, items), items)


def _target_column(rows: list[Row]) -> str:
    """The one target column of the first row; the others must have it too."""
    first = rows[0]
    present = [name for name in first.cells if name in _TARGETS]
    if not present:
        first.refuse("label", "a column `label`, `labels`, `value` or `spans` is needed")
    if len(present) > 1:
        first.refuse(present[1], f"a file has one target, and `{present[0]}` is one already")
    unknown = set(first.cells) - _COLUMNS
    if unknown:
        first.refuse(min(unknown), f"unknown column; known are {', '.join(sorted(_COLUMNS))}")
    for row in rows:
        differing = (set(row.cells) ^ set(first.cells)) - {"text_pair"}
        if differing:
            row.refuse(min(differing), "missing here or in the file's first row")
    return present[0]


def _choose_task(path: Path, rows: list[Row], column: str, task: Task | None) -> Task:
    kind = _TARGETS[column]
    fitting = {
        "label": {Task.SEQUENCE_CLASSIFICATION, Task.MULTI_LABEL_CLASSIFICATION},
        "value": {Task.REGRESSION},
        "spans": {Task.TOKEN_CLASSIFICATION},
    }[kind]
    if task is not None:
        if task not in fitting:
            raise InvalidArgument("task", f"{task} does not fit column `{column}` of {path.name}")
        return task
    if kind != "label":
        return next(iter(fitting))
    is_multi = column == "labels" or any(_looks_multi(row.cells[column]) for row in rows)
    return Task.MULTI_LABEL_CLASSIFICATION if is_multi else Task.SEQUENCE_CLASSIFICATION


def _looks_multi(cell: Any) -> bool:
    return isinstance(cell, list) or (
        isinstance(cell, str) and ("|" in cell or cell.lstrip().startswith("["))
    )


def _example(row: Row, column: str, task: Task) -> Example:
    text = _text(row, "text")
    pair = _text(row, "text_pair") if row.cells.get("text_pair") is not None else None
    cell = row.cells[column]
    if task is Task.REGRESSION:
        return Example(text, row.where, pair, value=_value(row, column, cell))
    if task is Task.TOKEN_CLASSIFICATION:
        if pair is not None:
            row.refuse("text_pair", "spans are of one text, not of a pair")
        return Example(text, row.where, spans=_spans(row, column, cell, len(text)))
    if task is Task.MULTI_LABEL_CLASSIFICATION:
        return Example(text, row.where, pair, labels=_label_set(row, column, cell))
    return Example(text, row.where, pair, labels=(_label(row, column, cell),))


def _text(row: Row, column: str) -> str:
    text = row.cells.get(column)
    if not isinstance(text, str):
        row.refuse(column, "must be a string")
    if not text.strip():
        row.refuse(column, "is empty")
    _check_unicode(row, column, text)
    return text


def _label(row: Row, column: str, cell: Any) -> str:
    """Integers are labels too; a list or a number with a fraction is a mistake."""
    if isinstance(cell, int) and not isinstance(cell, bool):
        return str(cell)
    if not isinstance(cell, str):
        row.refuse(column, "must be a string")
    if not cell.strip():
        row.refuse(column, "is empty")
    _check_unicode(row, column, cell)
    return cell.strip()


def _check_unicode(row: Row, column: str, text: str) -> None:
    """JSON can escape what no UTF-8 holds."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        row.refuse(column, "holds half of a surrogate pair, which is not Unicode text")


def _label_set(row: Row, column: str, cell: Any) -> tuple[str, ...]:
    """Any number of labels, none included: `a|b`, `["a", "b"]`, or an empty cell."""
    if isinstance(cell, str) and cell.lstrip().startswith("["):
        cell = _from_json(row, column, cell)
    elif isinstance(cell, str):
        cell = cell.split("|") if cell.strip() else []
    elif not isinstance(cell, list):
        cell = [cell]
    labels = [_label(row, column, label) for label in cell]
    if len(set(labels)) != len(labels):
        row.refuse(column, "names a label twice")
    return tuple(sorted(labels))


def _value(row: Row, column: str, cell: Any) -> float:
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        row.refuse(column, "must be a number")
    try:
        value = float(cell)
    except (ValueError, OverflowError):
        row.refuse(column, f"{str(cell)[:40]!r} is not a number")
    if not math.isfinite(value):
        row.refuse(column, "must be finite")
    return value


def _spans(row: Row, column: str, cell: Any, num_characters: int) -> tuple[Span, ...]:
    if row.is_csv:
        cell = _from_json(row, column, cell) if cell.strip() else []
    if not isinstance(cell, list):
        row.refuse(column, "must be a list of {start, end, label}")
    spans: list[Span] = []
    for index, item in enumerate(cell):
        name = f"{column}[{index}]"
        if not isinstance(item, dict) or set(item) != {"start", "end", "label"}:
            row.refuse(name, "must be an object with exactly start, end and label")
        start, end = item["start"], item["end"]
        if type(start) is not int or type(end) is not int:
            row.refuse(name, "start and end must be whole numbers of characters")
        if not 0 <= start < end <= num_characters:
            row.refuse(name, f"[{start}, {end}) is not within the text, [0, {num_characters})")
        spans.append(Span(start, end, _label(row, name, item["label"])))
    spans.sort(key=lambda span: span.start)
    for before, after in pairwise(spans):
        if after.start < before.end:
            row.refuse(column, f"the spans at {before.start} and {after.start} overlap")
    return tuple(spans)


def _from_json(row: Row, column: str, cell: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError) as error:
        row.refuse(column, f"is not JSON: {error}")


def _labels(path: Path, task: Task, items: tuple[Example, ...]) -> tuple[str, ...]:
    if task is Task.REGRESSION:
        if len(items) > 1 and len({item.value for item in items}) == 1:
            raise InvalidArgument(
                path.name, f"every value is {items[0].value:g}: there is nothing to learn"
            )
        return ("value",)
    if task is Task.TOKEN_CLASSIFICATION:
        found = {span.label for item in items for span in item.spans}
    else:
        found = {label for item in items for label in item.labels}
    if not found:
        raise InvalidArgument(path.name, "no example has a label: there is nothing to learn")
    if task is Task.SEQUENCE_CLASSIFICATION and len(found) == 1:
        raise InvalidArgument(
            path.name, f"every example has the label {min(found)!r}: a classifier needs two or more"
        )
    return tuple(sorted(found))
