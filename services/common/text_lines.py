"""The lines of a text file of any size, in bounded memory.

Knows bytes and UTF-8; does not know what the text is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

MAX_LINE_BYTES = 1 << 18


class NotUtf8Error(ValueError):
    """A file is not UTF-8.

    Attributes:
        position: Of the first byte that is wrong, in the file.
    """

    def __init__(self, position: int) -> None:
        super().__init__(f"is not UTF-8 at byte {position}")
        self.position = position


def lines_of(path: Path, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[str, int]]:
    """A file's lines, stripped, and the bytes of each; a longer one than `max_bytes` comes in
    several, parted behind spaces if it has any.

    Raises:
        NotUtf8Error: It is not UTF-8.
    """
    position = 0
    rest = b""
    with path.open("rb") as stream:
        for piece in iter(partial(stream.readline, max_bytes), b""):
            data = rest + piece
            is_line = piece.endswith(b"\n") or len(piece) < max_bytes
            end = len(data) if is_line else _cut(data)
            data, rest = data[:end], data[end:]
            yield _decoded(data, position).strip(), len(data)
            position += len(data)
    if rest:
        yield _decoded(rest, position).strip(), len(rest)


def _cut(data: bytes) -> int:
    """Where a line too long to be read at once is parted: behind a space, else between letters."""
    after_space = data.rfind(b" ") + 1
    if after_space:
        return after_space
    end = len(data)
    while end > len(data) - 4 and data[end - 1] & 0xC0 == 0x80:
        end -= 1  # over the last letter's further bytes
    return end - 1


def _decoded(data: bytes, position: int) -> str:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotUtf8Error(position + error.start) from error
    return text.removeprefix("\ufeff") if position == 0 else text
