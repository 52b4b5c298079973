"""Character spans to token tags and back, through the tokenizer's offsets, in IOB2.

Every token of a span is tagged, also the later pieces of a word, so that tags can be read token by
token or from each word's first piece. Knows neither tokenizer nor model.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import InvalidArgument
from services.executor.train.data import Span

OUTSIDE = "O"
Offset = tuple[int, int]


def tag_names(labels: Sequence[str]) -> tuple[str, ...]:
    """Tags of span labels, in the head's order: O, then B- and I- of each label."""
    return (OUTSIDE, *(f"{prefix}-{label}" for label in labels for prefix in "BI"))


def tags_of(
    text: str, spans: Sequence[Span], offsets: Sequence[Offset], *, where: str = "spans"
) -> list[str]:
    """A tag for each token.

    Args:
        text: The text.
        spans: Sorted, not overlapping.
        offsets: Characters [start, end) of each token; empty for special tokens, which get O.
        where: Names the example in messages.

    Raises:
        InvalidArgument: two spans meet in one token, so tags cannot tell them apart.
    """
    tags = [OUTSIDE] * len(offsets)
    owner: dict[int, Span] = {}
    for span in spans:
        prefix = "B"
        for index, offset in enumerate(offsets):
            if not _belongs(text, offset, span):
                continue
            if index in owner:
                both = f"{owner[index].start} and {span.start}"
                raise InvalidArgument(where, f"the spans at {both} meet within one token")
            owner[index] = span
            tags[index] = f"{prefix}-{span.label}"
            prefix = "I"
    return tags


def spans_of(text: str, tags: Sequence[str], offsets: Sequence[Offset]) -> list[Span]:
    """The spans that tags describe, in the order of the text.

    I-X after anything but B-X or I-X begins a span, as in conlleval: a model may miss a B. Tokens
    without characters are skipped.
    """
    spans: list[Span] = []
    is_open = False
    for tag, (start, end) in zip(tags, offsets, strict=True):
        start, end = trim(text, start, end)
        if start >= end:
            continue
        if tag == OUTSIDE:
            is_open = False
            continue
        prefix, _, label = tag.partition("-")
        if prefix == "I" and is_open and spans[-1].label == label:
            spans[-1] = Span(spans[-1].start, end, label)
        else:
            spans.append(Span(start, end, label))
        is_open = True
    return spans


def first_pieces(
    tags: Sequence[str], offsets: Sequence[Offset], words: Sequence[int | None]
) -> tuple[list[str], list[Offset]]:
    """A tag and the characters of each word: the tag is its first piece's, as serving takes it."""
    chosen: list[str] = []
    reach: list[Offset] = []
    before: int | None = None
    for tag, (start, end), word in zip(tags, offsets, words, strict=True):
        if word is None:
            continue
        if reach and word == before:
            reach[-1] = (reach[-1][0], max(reach[-1][1], end))
            continue
        before = word
        chosen.append(tag)
        reach.append((start, end))
    return chosen, reach


def _belongs(text: str, offset: Offset, span: Span) -> bool:
    """Whether a token shares characters with a span, other than blanks at the token's edges.

    A token of blanks alone belongs to the span around it, so that a span's tags have no gap.
    """
    start, end = trim(text, *offset)
    if start < end:
        return start < span.end and end > span.start
    return offset[0] < offset[1] and span.start < offset[0] and offset[1] < span.end


def trim(text: str, start: int, end: int) -> Offset:
    """[start, end) without blanks at its edges."""
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    return start, max(start, start + len(piece.strip()))
