"""Which n-gram answers for each token of a text under training, as a domain's tables would have it.

Knows keys; does not know rows, nor a server's tables: it is taken that the domain will hold what
the root holds and what the texts that are learnt from hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from services.common import ngrams
from services.common.errors import InvalidArgument
from services.common.ngram_counts import NgramCounts
from services.common.sorted_keys import NONE, IntArray, contains, union


class Tables:
    """N-grams that are held, and those that other texts than the one that is learnt from hold.

    A text whose own n-grams were all counted would be learnt from without a miss, and met with
    many when it is served: while it is learnt from, it is seen as if it had not been counted.

    Args:
        root: The root's n-grams, ascending.
        texts: Token ids of each text that is learnt from, special tokens included.
    """

    def __init__(self, root: IntArray, texts: Iterable[Sequence[int]]) -> None:
        own = [np.unique(ngrams.candidates(ngrams.keys_of(ids, [len(ids)]))) for ids in texts]
        keys, num_texts = np.unique(np.concatenate([NONE, *own]), return_counts=True)
        self._held = union(root, keys)
        self._held_by_others = union(root, keys[num_texts > 1])

    def answering(self, keys: IntArray, *, is_learning: bool) -> IntArray:
        """The n-gram that back-off answers each token's fullest one with, `[n]` to `[n]`.

        Args:
            is_learning: Whether these are texts that are learnt from.
        """
        held = self._held_by_others if is_learning else self._held
        tried = ngrams.candidates(keys)
        is_there = contains(held, tried)
        is_there[:, -1] = True  # a root holds every token
        first = is_there.argmax(1)
        return np.asarray(np.take_along_axis(tried, first[:, None], 1)[:, 0])


def root_keys(path: Path | None) -> IntArray:
    """The n-grams in a `root_keys.safetensors`; none without one.

    Raises:
        InvalidArgument: It is no such file.
    """
    if path is None:
        return NONE
    try:
        return NgramCounts.from_bytes(path.read_bytes()).keys.copy()
    except (OSError, InvalidArgument) as error:
        raise InvalidArgument("root_keys", f"{path} cannot be read: {error}") from error
