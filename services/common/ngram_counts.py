"""How often n-grams occur: counting in bounded memory, and the blobs that carry keys and counts.

Knows keys; does not know texts, tokenizers or what counts are for. A token counts once for each
n-gram that could answer for it: itself with both neighbours, with one, and alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from services.common import array_blob, ngrams
from services.common.errors import InvalidArgument
from services.common.ngrams import IntArray
from services.common.sorted_keys import added_up

COUNTS_FORMAT = "hmi.ngram_counts/1"
KEYS_FORMAT = "hmi.ngram_keys/1"

_MAX_PENDING = 1 << 22  # keys: 32 MiB gathered between merges
_MAX_ENTRIES = 1 << 24  # 256 MiB of keys and counts, up to three times that while merging
_MERGED_AT_ONCE = 1 << 20  # keys of the longest run


@dataclass(frozen=True, slots=True)
class NgramCounts:
    """N-grams of all orders with their counts.

    Attributes:
        keys: int64 `[n]`, ascending, distinct.
        counts: int64 `[n]`, positive in what is counted; a list of rows to begin with may hold 0.
        num_tokens: Tokens counted, those of n-grams that were dropped included.
        tokenizer_digest: sha256 of the tokenizer.json that made the ids, in hex.
    """

    keys: IntArray
    counts: IntArray
    num_tokens: int
    tokenizer_digest: str

    def to_bytes(self) -> bytes:
        """The counts blob."""
        return array_blob.to_bytes(
            {"keys": self.keys, "counts": self.counts},
            {
                "format": COUNTS_FORMAT,
                "num_tokens": self.num_tokens,
                "tokenizer_digest": self.tokenizer_digest,
            },
        )

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview) -> NgramCounts:
        """The counts in a blob, views of its bytes.

        Raises:
            InvalidArgument: It is not in the format, or its content contradicts it.
        """
        content = array_blob.parse(blob, what="counts")
        if content.metadata.get("format") != COUNTS_FORMAT:
            raise InvalidArgument("counts", f"is not of the format {COUNTS_FORMAT}")
        if set(content.arrays) != {"keys", "counts"}:
            raise InvalidArgument("counts", "must hold exactly the arrays keys and counts")
        keys, counts = content.arrays["keys"], content.arrays["counts"]
        check_keys(keys, "counts")
        if counts.dtype != np.int64 or counts.shape != keys.shape or (counts < 0).any():
            raise InvalidArgument("counts", "counts must be int64 [n], none negative")
        num_tokens = content.metadata.get("num_tokens")
        digest = content.metadata.get("tokenizer_digest")
        if type(num_tokens) is not int or num_tokens < 0 or not isinstance(digest, str):
            raise InvalidArgument("counts", "metadata must give num_tokens and tokenizer_digest")
        return cls(keys, counts, num_tokens, digest)


class NgramCounter:
    """Counts the n-grams of a corpus of any length within a bound on memory.

    Beyond `max_entries` distinct n-grams the rarest of two and three tokens are dropped, as in
    lossy counting (Manku and Motwani, VLDB 2002): a count is then too low by at most
    `max_undercount`, and is never too high. Unigrams are never dropped.
    """

    def __init__(self, *, max_entries: int = _MAX_ENTRIES, max_pending: int = _MAX_PENDING) -> None:
        self._max_entries = max_entries
        self._max_pending = max_pending
        self._keys: IntArray = np.empty(0, np.int64)
        self._counts: IntArray = np.empty(0, np.int64)
        self._pending: list[IntArray] = []
        self._num_pending = 0
        self.num_tokens = 0
        self.max_undercount = 0

    def add(self, token_ids: ArrayLike, lengths: ArrayLike) -> None:
        """Count packed rows; arguments and errors as `ngrams.keys_of`."""
        full = ngrams.keys_of(token_ids, lengths)
        self.num_tokens += len(full)
        self._pending.append(answering_keys(full))
        self._num_pending += len(self._pending[-1])
        if self._num_pending >= self._max_pending:
            self._merge()

    def counts(self, tokenizer_digest: str) -> NgramCounts:
        """What was counted so far."""
        self._merge()
        return NgramCounts(self._keys, self._counts, self.num_tokens, tokenizer_digest)

    def _merge(self) -> None:
        if not self._pending:
            return
        keys, counts = np.unique(np.concatenate(self._pending), return_counts=True)
        self._pending, self._num_pending = [], 0
        self._keys, self._counts = merge_counts(
            [self._keys, keys], [self._counts, counts.astype(np.int64)]
        )
        if len(self._keys) > self._max_entries:
            self._drop_rarest()

    def _drop_rarest(self) -> None:
        """Keep half of what is allowed, so that dropping stays rare."""
        is_long = ngrams.order_of(self._keys) > 1
        long_counts = self._counts[is_long]
        num_kept = max(self._max_entries // 2 - int((~is_long).sum()), 0)
        num_dropped = len(long_counts) - num_kept
        if num_dropped <= 0:
            return
        floor = int(np.partition(long_counts, num_dropped - 1)[num_dropped - 1])
        keep = ~is_long | (self._counts > floor)
        self._keys, self._counts = self._keys[keep], self._counts[keep]
        self.max_undercount += floor


def answering_keys(full: IntArray) -> IntArray:
    """Every n-gram that could answer for tokens with these fullest n-grams, in no order.

    A token at a row's edge has fewer of them: what equals its fullest n-gram is not repeated.
    """
    has_right = full != ngrams.without_right(full)
    has_left = full != ngrams.without_left(full)
    return np.concatenate(
        [
            full,
            ngrams.without_right(full[has_right]),
            ngrams.without_left(full[has_left]),
            ngrams.only_centre(full[has_left & has_right]),
        ]
    )


def merge_counts(keys: list[IntArray], counts: list[IntArray]) -> tuple[IntArray, IntArray]:
    """The sum of several counts: keys int64 `[n]` ascending and distinct, counts int64 `[n]`.

    Each of `keys` is ascending; runs merge in linear time. Beside the result it takes little
    memory: keys are merged range after range.
    """
    total = sum(map(len, keys))
    merged_keys, merged_counts = np.empty(total, np.int64), np.empty(total, np.int64)
    longest = max(keys, key=len)
    places = np.arange(_MERGED_AT_ONCE, len(longest), _MERGED_AT_ONCE)
    cuts = [[0, *np.searchsorted(run, longest[places]).tolist(), len(run)] for run in keys]
    num = 0
    for part in range(len(places) + 1):
        spans = [slice(cut[part], cut[part + 1]) for cut in cuts]
        some_keys, some_counts = added_up(
            np.concatenate([run[span] for run, span in zip(keys, spans, strict=True)]),
            np.concatenate([run[span] for run, span in zip(counts, spans, strict=True)]),
        )
        merged_keys[num : num + len(some_keys)] = some_keys
        merged_counts[num : num + len(some_keys)] = some_counts
        num += len(some_keys)
    # In place; what was never written to was never taken from the system.
    merged_keys.resize(num, refcheck=False)
    merged_counts.resize(num, refcheck=False)
    return merged_keys, merged_counts


def keys_to_bytes(keys: IntArray) -> bytes:
    """A blob with keys alone: rows to materialise."""
    return array_blob.to_bytes({"keys": keys}, {"format": KEYS_FORMAT})


def keys_from_bytes(blob: bytes | memoryview) -> IntArray:
    """The keys in a blob, int64 `[n]` ascending and distinct, a view of its bytes.

    Raises:
        InvalidArgument: It is not in the format, or its content contradicts it.
    """
    content = array_blob.parse(blob, what="keys")
    if content.metadata.get("format") != KEYS_FORMAT or set(content.arrays) != {"keys"}:
        raise InvalidArgument("keys", f"is not of the format {KEYS_FORMAT}")
    check_keys(content.arrays["keys"], "keys")
    return content.arrays["keys"]


def check_keys(keys: IntArray, what: str) -> None:
    """Refuse what are no keys in ascending order.

    Raises:
        InvalidArgument: Naming `what`.
    """
    if keys.dtype != np.int64 or keys.ndim != 1:
        raise InvalidArgument(what, "keys must be int64 [n]")
    if (keys[1:] <= keys[:-1]).any():
        raise InvalidArgument(what, "keys must be ascending and distinct")
    if not ngrams.is_key(keys).all():
        raise InvalidArgument(what, "holds numbers that are no n-grams")
