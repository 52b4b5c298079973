"""The corpus's sources, read from `sources.toml` beside this file.

Does not fetch or read a package; it only says which there are and what is taken of them.
"""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from models.hminilm.corpus.packages import Package

SOURCES_FILE = Path(__file__).with_name("sources.toml")


@dataclass(frozen=True, slots=True)
class Source:
    """One kind of text: where it comes from, under which licence, and how it is read."""

    name: str
    """Names the output file."""
    genre: str
    """What kind of prose it is, in a word or two."""
    licence: str
    """As the package states it."""
    reader: str
    """A key of `formats.READERS`."""
    take: tuple[str, ...]
    """Patterns (fnmatch) of the files that are read."""
    skip: tuple[str, ...]
    """Patterns of files that are left out of those."""
    drop: re.Pattern[str] | None
    """Paragraphs that match are boilerplate."""
    max_tokens: int
    """The source ends at the document that passes this number."""
    packages: tuple[Package, ...]


def load_sources(path: Path = SOURCES_FILE) -> list[Source]:
    """The sources in the file's order. Raises KeyError for a missing field."""
    table = tomllib.loads(path.read_text("utf-8"))
    return [_source(entry, table["max_tokens"]) for entry in table["source"]]


def _source(entry: dict[str, object], max_tokens: int) -> Source:
    registry = str(entry["registry"])
    return Source(
        name=str(entry["name"]),
        genre=str(entry["genre"]),
        licence=str(entry["licence"]),
        reader=str(entry["reader"]),
        take=_strings(entry["take"]),
        skip=_strings(entry.get("skip", [])),
        drop=re.compile(str(entry["drop"])) if "drop" in entry else None,
        max_tokens=max_tokens,
        packages=tuple(Package(registry, *line.split()) for line in _strings(entry["packages"])),
    )


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"a list of strings is needed, not {value!r}")
    return tuple(map(str, value))
