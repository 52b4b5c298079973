"""Token tags to spans of the text.

A word has the tag of its first token (Hugging Face's "first" aggregation) and reaches from its
first token's first character to its last token's last; words are the tokenizer's. Tags of an IOB or
BIOES scheme join words into spans, leniently: an I- or E- that continues nothing begins a span, as
in conlleval. Labels without a scheme make one span a word. `O` is no span. Does not know models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hmi.inference.v1 import inference_pb2 as pb
from services.gateway.domain import Encoded

OUTSIDE = "O"
_BEGINS = frozenset("BS")
_ENDS = frozenset("ES")
_PREFIXES = frozenset("BIES")


@dataclass(slots=True)
class _Word:
    """A word's tag and its characters `[start, end)`."""

    prefix: str
    label: str
    score: float
    start: int
    end: int


def _has_scheme(labels: Sequence[str]) -> bool:
    """Whether every label but O has a scheme's prefix."""
    tags = [label for label in labels if label != OUTSIDE]
    return bool(tags) and all(
        len(tag) > 2 and tag[0] in _PREFIXES and tag[1] == "-" for tag in tags
    )


def _words(
    probabilities: npt.NDArray[np.float64], labels: Sequence[str], encoded: Encoded
) -> list[_Word]:
    """The text's words in their order, outside ones too."""
    best = probabilities.argmax(axis=-1)
    scores = probabilities[np.arange(len(best)), best].tolist()
    has_scheme = _has_scheme(labels)
    words: list[_Word] = []
    before: int | None = None
    for token, index in enumerate(encoded.words):
        if index is None:
            continue
        start, end = encoded.offsets[token]
        if words and index == before:
            words[-1].end = max(words[-1].end, end)
            continue
        before = index
        label = labels[best[token]]
        prefix = ""
        if has_scheme and label != OUTSIDE:
            prefix, label = label[0], label[2:]
        words.append(_Word(prefix, label, scores[token], start, end))
    return words


def spans(
    probabilities: npt.NDArray[np.float64], labels: Sequence[str], encoded: Encoded, text: str
) -> list[pb.Span]:
    """The tagged spans, in the order of the text.

    Args:
        probabilities: `[tokens, labels]`.
        encoded: Tokens with words and offsets.
        text: What the offsets, in code points, point into.
    """
    groups: list[list[_Word]] = []
    is_open = False
    for word in _words(probabilities, labels, encoded):
        if word.label == OUTSIDE:
            is_open = False
            continue
        goes_on = is_open and word.prefix not in _BEGINS and groups[-1][-1].label == word.label
        if goes_on:
            groups[-1].append(word)
        else:
            groups.append([word])
        is_open = word.prefix != "" and word.prefix not in _ENDS
    return [_span(group, text) for group in groups]


def _span(words: list[_Word], text: str) -> pb.Span:
    start, end = words[0].start, words[-1].end
    # Byte-level tokenizers may count the space before a word as its own.
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return pb.Span(
        label=words[0].label,
        start=start,
        end=end,
        text=text[start:end],
        score=sum(word.score for word in words) / len(words),
    )
