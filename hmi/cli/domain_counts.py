"""Counting a corpus for `hmi domains create`, with progress.

Knows where a base's tokenizer may lie on this machine; counting itself is `hmi.corpus`'s.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from hmi.bases import minilm_directory
from hmi.cli.output import note, upload_bar
from hmi.cli.session import Session, is_quiet
from hmi.client import Base
from hmi.corpus import check_files, count_corpus
from hmi.errors import InvalidArgument
from services.common.ngram_counts import NgramCounts


def counted(session: Session, base: Base, files: list[Path], base_dir: Path | None) -> NgramCounts:
    """The counts of a corpus, as a base's tokenizer makes its n-grams.

    Args:
        base_dir: The base's checkpoint; MiniLM's if None.

    Raises:
        InvalidArgument: The tokenizer is not the base's, or a file is no text.
    """
    tokenizer = (base_dir or minilm_directory()) / "tokenizer.json"
    digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
    if digest != base.tokenizer_digest:
        raise InvalidArgument(
            f"{tokenizer} is not the tokenizer of base {base.name}: give its checkpoint with "
            "--base-dir",
            field="base_dir",
        )
    size = check_files(files)
    with upload_bar("counting", is_quiet=is_quiet(session)) as progress:
        done = 0

        def on_bytes(num: int) -> None:
            nonlocal done
            done += num
            progress(done, size)

        counts, undercount = count_corpus(files, tokenizer, on_bytes)
    if not session.as_json:
        note(f"{counts.num_tokens} tokens, {len(counts.keys)} n-grams counted")
        if undercount:
            note(f"the rarest were left out: a count may be too low by {undercount}")
    return counts
