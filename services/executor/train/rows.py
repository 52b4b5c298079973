"""Reads the records of a CSV or JSON Lines file, each with its place in the file.

Knows the two formats; does not know what the columns mean.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from services.common.errors import InvalidArgument


@dataclass(frozen=True)
class Row:
    """One record, with where it stands; `cells` are strings (CSV) or JSON values."""

    where: str
    cells: Mapping[str, Any]
    is_csv: bool

    def refuse(self, column: str, why: str) -> NoReturn:
        raise InvalidArgument(f"{self.where}: {column}", why)


def read_rows(path: Path) -> Iterator[Row]:
    """The records of a file, in order.

    Args:
        path: `.csv` with a header line that names `text`, or `.jsonl`, `.ndjson`, `.json` with an
            object a line. UTF-8, with or without a byte order mark.

    Raises:
        InvalidArgument: naming `file:line`, and the column where there is one.
    """
    readers: dict[str, Callable[[Path, str], Iterator[Row]]] = {
        ".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows, ".json": _json_rows,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InvalidArgument(path.name, "must end in .csv or .jsonl")
    return reader(path, _decode(path))


def _decode(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidArgument(path.name, f"cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidArgument(f"{path.name}:{line}", "is not UTF-8") from error


def _csv_rows(path: Path, content: str) -> Iterator[Row]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    while True:
        where = f"{path.name}:{line}"
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InvalidArgument(where, f"is not CSV: {error}") from error
        if cells is None:
            return
        line = reader.line_num + 1
        if not cells:
            continue
        if header is None:
            header = _check_header(where, [cell.strip() for cell in cells])
        elif len(cells) != len(header):
            column = header[min(len(cells), len(header) - 1)]
            why = f"the row has {len(cells)} fields, the header {len(header)}; quote commas in text"
            raise InvalidArgument(f"{where}: {column}", why)
        else:
            yield Row(where, dict(zip(header, cells, strict=True)), is_csv=True)


def _check_header(where: str, header: list[str]) -> list[str]:
    for name in header:
        if header.count(name) > 1:
            raise InvalidArgument(f"{where}: {name}", "the header names this column twice")
    if "text" not in header:
        raise InvalidArgument(f"{where}: text", "the header must name a column `text`")
    return header


def _json_rows(path: Path, content: str) -> Iterator[Row]:
    # Not splitlines(): U+2028 and friends are ordinary characters within a JSON string.
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(where, f"is not JSON: {error}") from error
        if not isinstance(cells, dict):
            raise InvalidArgument(where, "must be a JSON object")
        yield Row(where, cells, is_csv=False)
