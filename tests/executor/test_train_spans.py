"""Character spans to tags and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from services.common.errors import InvalidArgument
from services.executor.train.data import Span
from services.executor.train.spans import spans_of, tag_names, tags_of
from tests.executor.training import WORDS, tiny_tokenizer

WORDPIECE = tiny_tokenizer()
WORDPIECE.no_padding()
WORDPIECE.no_truncation()
ALPHABET = pre_tokenizers.ByteLevel.alphabet()
BYTE_LEVEL = Tokenizer(models.BPE({c: i for i, c in enumerate(ALPHABET)}, []))
BYTE_LEVEL.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


@st.composite
def tagged_texts(draw: st.DrawFn) -> tuple[str, list[Span]]:
    """Words with runs of blanks between them, and spans over whole words, some of them adjacent."""
    word = st.one_of(st.sampled_from(WORDS), st.text("abcxyzé😀", min_size=1, max_size=6))
    words = draw(st.lists(word, min_size=1, max_size=8))
    starts, text = [], draw(st.sampled_from(["", " "]))
    for chosen in words:
        starts.append(len(text))
        text += chosen + draw(st.sampled_from([" ", "  ", "\t"]))
    spans, at = [], 0
    while at < len(words):
        length = draw(st.integers(0, 3))
        if length:
            last = min(at + length, len(words)) - 1
            label = draw(st.sampled_from(["PER", "LOC-A"]))
            spans.append(Span(starts[at], starts[last] + len(words[last]), label))
            at = last
        at += 1
    return text, spans


@pytest.mark.parametrize("tokenizer", [WORDPIECE, BYTE_LEVEL], ids=["wordpiece", "byte-level"])
@given(tagged_texts())
def test_spans_of_whole_words_come_back_as_they_were(
    tokenizer: Tokenizer, tagged: tuple[str, list[Span]]
) -> None:
    text, spans = tagged
    offsets = tokenizer.encode(text).offsets
    tags = tags_of(text, spans, offsets)
    assert spans_of(text, tags, offsets) == spans
    assert set(tags) <= set(tag_names(["PER", "LOC-A"]))
    # IOB2: an I- continues its own label.
    for before, tag in zip(["O", *tags], tags, strict=False):
        assert not tag.startswith("I-") or before[2:] == tag[2:]


def test_the_first_piece_begins_and_later_pieces_continue() -> None:
    offsets = [(0, 0), (0, 2), (2, 4), (5, 7), (8, 9), (0, 0)]
    tags = tags_of("Annabel B, c", [Span(0, 7, "PER"), Span(8, 9, "PER")], offsets)
    assert tags == ["O", "B-PER", "I-PER", "I-PER", "B-PER", "O"]


def test_a_span_that_ends_within_a_token_takes_the_whole_token() -> None:
    assert spans_of("abcd", tags_of("abcd", [Span(0, 2, "P")], [(0, 4)]), [(0, 4)]) == [
        Span(0, 4, "P")
    ]


def test_an_inside_tag_without_a_beginning_begins_a_span() -> None:
    offsets = [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert spans_of("a b c d", ["I-P", "I-Q", "O", "I-Q"], offsets) == [
        Span(0, 1, "P"), Span(2, 3, "Q"), Span(6, 7, "Q"),
    ]  # fmt: skip


def test_two_spans_in_one_token_are_refused_where_they_stand() -> None:
    with pytest.raises(InvalidArgument) as caught:
        tags_of("abcd", [Span(0, 2, "P"), Span(2, 4, "Q")], [(0, 4)], where="d.jsonl:7")
    assert caught.value.field == "d.jsonl:7"
