"""Writes the corpus: for each source one file of prose, one paragraph a line.

Does not know formats or registries; it joins the readers, the filter and the tokenizer.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tokenizers import Tokenizer

from models.hminilm.corpus.formats import READERS, Document
from models.hminilm.corpus.packages import walk
from models.hminilm.corpus.prose import Seen, is_prose, split_long
from models.hminilm.corpus.sources import Source


@dataclass(frozen=True, slots=True)
class Totals:
    """What one source gave."""

    documents: int
    paragraphs: int
    tokens: int


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that counts: whole texts, without padding or truncation."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def build(source: Source, out: Path, tokenizer: Tokenizer, seen: Seen) -> Totals:
    """Writes OUT/<source>.txt and then OUT/<source>.json, its totals; both or neither count.

    A source that is there is only read, so that `seen` knows its paragraphs. A file under its
    final name is complete. Memory stays at one file of a package and eight bytes a paragraph.
    Raises PackageError when a package cannot be had.
    """
    text, totals = out / f"{source.name}.txt", out / f"{source.name}.json"
    if totals.exists():
        with text.open(encoding="utf-8") as lines:
            for line in filter(str.strip, lines):
                seen.add(line.strip())
        return Totals(**json.loads(totals.read_text()))
    documents = prose_documents(_read(source, out / "packages"), source.drop, seen)
    partial = text.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        result = _write(documents, file.write, tokenizer, source.max_tokens)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(text)
    totals.write_text(json.dumps(asdict(result)) + "\n")
    return result


def prose_documents(
    documents: Iterable[Document], drop: re.Pattern[str] | None, seen: Seen
) -> Iterator[Document]:
    """What the filter leaves of each document; documents left empty are gone.

    A paragraph is left out when it is not prose, when `drop` is found in it, or when it is in
    `seen`, which learns the others.
    """
    for document in documents:
        kept = [
            paragraph
            for whole in document
            for paragraph in split_long(whole)
            if is_prose(paragraph) and not (drop and drop.search(paragraph)) and seen.add(paragraph)
        ]
        if kept:
            yield kept


def _read(source: Source, folder: Path) -> Iterator[Document]:
    read = READERS[source.reader]
    for package in source.packages:
        for _name, data in walk(package.download(folder), source.take, source.skip):
            yield from read(data)


def _write(
    documents: Iterable[Document],
    write: Callable[[str], object],
    tokenizer: Tokenizer,
    max_tokens: int,
) -> Totals:
    num_documents = num_paragraphs = num_tokens = 0
    for document in documents:
        encoded = tokenizer.encode_batch_fast(document, add_special_tokens=False)
        num_tokens += sum(len(encoding) for encoding in encoded)
        num_paragraphs += len(document)
        num_documents += 1
        write("\n".join(document) + "\n\n")
        if num_tokens >= max_tokens:
            break
    return Totals(num_documents, num_paragraphs, num_tokens)
