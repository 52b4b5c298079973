"""N-grams as 64-bit keys: packing, the keys of packed rows, and what a key backs off to.

Knows token ids and slots only; does not know tables, counts or which n-grams anybody keeps.

A key is `left << 42 | centre << 21 | right`. A slot is a token id plus one; 0 means that there is
no such neighbour (id 0 is a real token in some vocabularies). An n-gram's order is the number of
its slots that are present: the first token of a row has no left neighbour, so its fullest n-gram is
a bigram. The layout is part of the wire format (`hmi/knowledge/v1/domain.proto`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray = NDArray[np.int64]

SLOT_BITS = 21
SLOT_MASK = (1 << SLOT_BITS) - 1
MAX_TOKEN_ID = SLOT_MASK - 1
MAX_ORDER = 3

_LEFT = np.int64(SLOT_MASK << 2 * SLOT_BITS)
_CENTRE = np.int64(SLOT_MASK << SLOT_BITS)
_RIGHT = np.int64(SLOT_MASK)


def pack(left: ArrayLike, centre: ArrayLike, right: ArrayLike) -> IntArray:
    """Keys int64 `[n]` of slots `[n]` (token id + 1, 0 if absent).

    Raises:
        ValueError: A slot is negative or beyond 21 bits.
    """
    slots = [np.asarray(slot, dtype=np.int64) for slot in (left, centre, right)]
    for slot in slots:
        if slot.size and (slot.min() < 0 or slot.max() > SLOT_MASK):
            raise ValueError(f"slots must lie in [0, {SLOT_MASK}]")
    return np.asarray(slots[0] << 2 * SLOT_BITS | slots[1] << SLOT_BITS | slots[2])


def unpack(keys: IntArray) -> IntArray:
    """Slots int64 `[n, 3]` (left, centre, right) of keys `[n]`."""
    return np.stack(
        [keys >> 2 * SLOT_BITS, keys >> SLOT_BITS & SLOT_MASK, keys & SLOT_MASK], axis=-1
    )


def keys_of(token_ids: ArrayLike, lengths: ArrayLike) -> IntArray:
    """Each token's fullest n-gram: itself and its neighbours in its row.

    Args:
        token_ids: `[tokens]`, the rows one after the other.
        lengths: `[rows]`, positive or zero, their sum is the number of tokens.

    Returns:
        int64 `[tokens]`.

    Raises:
        ValueError: A token id is negative or beyond 21 bits, or lengths and tokens disagree.
    """
    slots = np.asarray(token_ids, dtype=np.int64) + 1
    row_lengths = np.asarray(lengths, dtype=np.int64)
    if (row_lengths.size and row_lengths.min() < 0) or row_lengths.sum() != len(slots):
        raise ValueError(f"lengths do not add up to {len(slots)} tokens")
    if not len(slots):
        return np.empty(0, np.int64)
    if slots.min() < 1 or slots.max() > SLOT_MASK:
        raise ValueError(f"token ids must lie in [0, {MAX_TOKEN_ID}]")
    ends = np.cumsum(row_lengths[row_lengths > 0])
    keys = slots << SLOT_BITS
    left = slots[:-1] << 2 * SLOT_BITS
    left[ends[:-1] - 1] = 0
    right = slots[1:].copy()
    right[ends[:-1] - 1] = 0
    keys[1:] |= left
    keys[:-1] |= right
    return keys


def order_of(keys: IntArray) -> IntArray:
    """How many slots of each key are present: int64 `[n]`, 0 to 3."""
    has_left, has_centre, has_right = keys & _LEFT != 0, keys & _CENTRE != 0, keys & _RIGHT != 0
    num_present: IntArray = has_left.astype(np.int64) + has_centre + has_right
    return num_present


def without_right(keys: IntArray) -> IntArray:
    """The keys with their right slot absent: the bigram of the left neighbour and the centre."""
    return np.asarray(keys & ~_RIGHT)


def without_left(keys: IntArray) -> IntArray:
    """The keys with their left slot absent: the bigram of the centre and the right neighbour."""
    return np.asarray(keys & ~_LEFT)


def only_centre(keys: IntArray) -> IntArray:
    """The keys with both neighbours absent: the unigram."""
    return np.asarray(keys & _CENTRE)


def candidates(keys: IntArray) -> IntArray:
    """The n-grams that may answer for each fullest one, in the order of back-off: itself, the left
    bigram, the right bigram, the unigram. int64 `[n]` to `[n, 4]` (design section 5)."""
    return np.stack([keys, without_right(keys), without_left(keys), only_centre(keys)], axis=1)


def is_key(keys: IntArray) -> NDArray[np.bool_]:
    """Whether each number is a key: its centre is present and nothing is set beyond 63 bits."""
    return np.asarray((keys >= 0) & (keys & _CENTRE != 0))
