"""Decides which paragraphs are English prose, and which have been seen before.

Does not know where a paragraph comes from; one rule judges every source.
"""

import hashlib
import re
from collections.abc import Iterator

MIN_WORDS = 6
MAX_CHARS = 2_000
MIN_LETTERS = 0.7
MIN_FUNCTION_WORDS = 0.2
MIN_WORD_CHARS = 3.0
MAX_WORD_CHARS = 8.0
MAX_CAPITALS = 0.3

# English words that carry grammar: other languages, lists, tables and code lack them.
FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        """
        a about after all also an and any are as at be because been before being between both
        but by can could did do does down each for from had has have he her here him his how i
        if in into is it its just like may me more most much must my no nor not now of off on
        one only or other our out over own same shall she should so some such than that the
        their them then there these they this those through to too under until up upon us very
        was we were what when where which while who whom whose why will with within without
        would you your
        """,
    )
)
_WORD = re.compile(r"[A-Za-z]+(?:['’][a-z]+)?")
_SENTENCE_END = re.compile(r"(?<=[.!?]) (?=[\"'“‘(]?[A-Z])")
# An address, a link, a path, markup, an assignment or a call: the line is not prose.
_NOT_PROSE = re.compile(
    r"@|://|www\.|[{}|\\~^]|[=_*#-]{3}|\w_\w|\w\(\)|;$|%[sd]\b|\$\w|</|&\w+;|->|::"
)


def is_prose(paragraph: str) -> bool:
    """Whether a paragraph of one line is English running text.

    It is when it has at least 6 words, 20 % of them function words, of 3 to 8 letters on average;
    when 70 % of its characters are ASCII letters, at most 30 % of them capitals; when it has at
    most 2,000 characters; and when nothing in it looks like an address, a link, markup or code.
    """
    if len(paragraph) > MAX_CHARS or _NOT_PROSE.search(paragraph):
        return False
    words = _WORD.findall(paragraph)
    if len(words) < MIN_WORDS:
        return False
    letters = sum(map(len, words))
    if letters < MIN_LETTERS * len(paragraph):
        return False
    if not MIN_WORD_CHARS <= letters / len(words) <= MAX_WORD_CHARS:
        return False
    if sum(map(str.isupper, paragraph)) > MAX_CAPITALS * letters:
        return False
    num_function_words = sum(word.lower() in FUNCTION_WORDS for word in words)
    return num_function_words >= MIN_FUNCTION_WORDS * len(words)


def split_long(paragraph: str) -> Iterator[str]:
    """A paragraph in runs of whole sentences of about MAX_CHARS / 2, itself if it is no longer."""
    start = 0
    if len(paragraph) > MAX_CHARS:
        for end in _SENTENCE_END.finditer(paragraph):
            if end.start() - start >= MAX_CHARS // 2:
                yield paragraph[start : end.start()]
                start = end.end()
    yield paragraph[start:]


class Seen:
    """The paragraphs met so far, eight bytes of digest for each, letter case and digits aside."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def add(self, paragraph: str) -> bool:
        """Takes note of a paragraph; tells whether it is new."""
        key = re.sub(r"[\W\d]+", " ", paragraph.lower()).strip().encode()
        digest = hashlib.blake2b(key, digest_size=8).digest()
        is_new = digest not in self._digests
        self._digests.add(digest)
        return is_new
