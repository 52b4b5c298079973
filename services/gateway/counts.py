"""Whether n-gram counts are of a base: of its tokenizer and its vocabulary.

Knows the base; what counts are is `services.common.ngram_counts`'.
"""

from __future__ import annotations

from services.common import ngrams
from services.common.errors import InvalidArgument
from services.common.ngram_counts import NgramCounts

_PIECE = 1 << 20


def check_counts(field: str, blob: bytes, tokenizer_digest: str, vocab_size: int) -> None:
    """That a blob holds counts of a base's n-grams.

    Raises:
        InvalidArgument: Naming `field`.
    """
    try:
        counts = NgramCounts.from_bytes(blob)
    except InvalidArgument as error:
        raise InvalidArgument(field, error.description, reason=error.reason) from error
    if counts.tokenizer_digest != tokenizer_digest:
        raise InvalidArgument(
            field,
            f"was counted with tokenizer {counts.tokenizer_digest[:12]}…, the base's is "
            f"{tokenizer_digest[:12]}…",
            reason="ANOTHER_BASE",
        )
    if not len(counts.keys):
        raise InvalidArgument(field, "holds no n-gram")
    for start in range(0, len(counts.keys), _PIECE):
        slots = ngrams.unpack(counts.keys[start : start + _PIECE])
        if int(slots.max()) > vocab_size:  # a slot is a token id plus one
            raise InvalidArgument(field, f"a token id is outside the vocabulary [0, {vocab_size})")
    if int(counts.counts.max()) > counts.num_tokens:
        raise InvalidArgument(field, f"an n-gram came more often than {counts.num_tokens} tokens")
