"""The training corpus: what counts as prose, how formats are read, what the files look like."""

import gzip
import io
import json
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from models.hminilm.corpus.build import build
from models.hminilm.corpus.formats import READERS
from models.hminilm.corpus.packages import Package, PackageError, walk
from models.hminilm.corpus.prose import MAX_CHARS, Seen, is_prose, split_long
from models.hminilm.corpus.sources import Source, load_sources

PROSE = "The committee said on Friday that it would not change the rules before the spring."
OTHER = "She walked along the shore with her brother and spoke of what they had seen."


@pytest.mark.parametrize(
    "paragraph",
    [
        PROSE,
        "amblyopia: visual impairment without any damage to the eye that can be seen",
        "“I don’t know,” he said, “but we’ll find out when they’ve come home.”",
        "In 1867 the United States bought Alaska from Russia for about 7 million dollars.",
    ],
)
def test_running_english_is_prose(paragraph: str) -> None:
    assert is_prose(paragraph)


@pytest.mark.parametrize(
    "paragraph",
    [
        "Too short to be prose.",
        "Der Ausschuss hat am Freitag gesagt, dass er die Regeln nicht mehr ändern werde.",
        "for (int i = 0; i < n; ++i) { total += a[i]; } return total to the caller of it;",
        "Write to the list at someone@example.org if you want to be taken off of it.",
        "See the page at https://example.org for what the authors have to say about it.",
        "1.20 3.40 5.60 7.80 the 9.10 of 11.12 13.14 and 15.16 17.18 to 19.20 21.22 in",
        "apple banana cherry damson elderberry fig grape hazelnut iceberg juniper kiwi lemon",
        "THE TERMS AND CONDITIONS OF THIS AGREEMENT ARE WHAT YOU HAVE AGREED TO BE BOUND BY",
    ],
)
def test_code_tables_addresses_and_other_languages_are_not_prose(paragraph: str) -> None:
    assert not is_prose(paragraph)


@given(st.lists(st.sampled_from([PROSE, OTHER, "So it was."]), min_size=1, max_size=80))
def test_long_paragraphs_are_split_at_sentences_and_lose_nothing(sentences: list[str]) -> None:
    whole = " ".join(sentences)
    pieces = list(split_long(whole))
    assert " ".join(pieces) == whole
    assert all(len(piece) <= MAX_CHARS for piece in pieces)


def test_a_paragraph_is_new_once_whatever_its_case_and_digits() -> None:
    seen = Seen()
    assert seen.add("Chapter 1 begins where the road ends.")
    assert not seen.add("CHAPTER 2 begins, where the road ends")
    assert seen.add("Chapter one begins where the road ends.")


DICTIONARY = b"""Shore \\Shore\\, n. [OE. schore.]
   1. The land at the edge of the {sea}.
      [1913 Webster]

            The fruitful shore of muddy Nile.  --Spenser.
   2. A prop for a beam.
amble
    v 1: walk at a leisurely pace [syn: {stroll}]
"""
MAIL = b"""From: a@example.org
Content-Type: text/plain; charset=us-ascii

> What do you think?
I think that
it works.
-- \nA. Sender
"""


@pytest.mark.parametrize(
    ("reader", "data", "documents"),
    [
        ("text", b"one\ntwo\n\nthree\n", [["one two", "three"]]),
        (
            "html",
            b"<p>a <b>bold</b> &amp;\nplain</p><pre>x = 1</pre>end",
            [["a bold & plain", "end"]],
        ),
        (
            "rst",
            b"See :ref:`here <x>` and\n``that``::\n\n  code()\n\nDone.",
            [["See here and that::", "Done."]],
        ),
        ("pod", b"=head1 NAME\n\nUse B<L<this>> now.\n\n  code;\n", [["Use this now."]]),
        ("fortunes", b"one\nline\n%\ntwo\n", [["one line"], ["two"]]),
        ("mail", MAIL, [["I think that it works."]]),
        ("literals", b'say(_"Hello \\"you\\".") x = [[a\nb]] `c`', [['Hello "you".', "a b", "c"]]),
        ("json", b'{"k": ["a", {"z": "b\\nc"}], "n": 3, "l": "d"}', [["a", "b", "c", "d"]]),
        ("sword", zlib.compress(b"<p>one</p>") + zlib.compress(b"two"), [["one"], ["two"]]),
        (
            "dictionary",
            DICTIONARY,
            [
                [
                    "Shore: The land at the edge of the sea.",
                    "Shore: The fruitful shore of muddy Nile.",
                    "Shore: A prop for a beam.",
                ],
                ["amble: walk at a leisurely pace"],
            ],
        ),
    ],
)
def test_formats_are_read_as_paragraphs(
    reader: str, data: bytes, documents: list[list[str]]
) -> None:
    assert list(READERS[reader](data)) == documents


def test_strings_of_an_r_database_are_read_in_order() -> None:
    lines = [b"It is a truth", b"universally", b"", b"acknowledged"]
    block = b"".join(b"\x00\x04\x00\x09" + len(line).to_bytes(4, "big") + line for line in lines)
    data = len(block).to_bytes(4, "big") + zlib.compress(block)
    documents = list(READERS["r-strings"](data + data))
    assert documents == [["It is a truth universally", "acknowledged"]] * 2


def _package(folder: Path, files: dict[str, bytes]) -> Package:
    """A package that is in the folder already, so that no registry is asked."""
    package = Package("npm", "texts", "1.0", "0" * 64)
    folder.mkdir(parents=True)
    with tarfile.open(folder / "npm-texts-1.0", "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return package


def _source(package: Package, max_tokens: int = 1000) -> Source:
    return Source(
        "texts", "tests", "CC0-1.0", "text", ("*.txt",), ("*/old/*",), None, max_tokens, (package,)
    )


@pytest.fixture
def tokenizer() -> Tokenizer:
    words = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))  # type: ignore[arg-type]
    words.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return words


def test_output_is_a_paragraph_a_line_and_an_empty_line_after_a_document(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    files = {
        "package/a.txt": f"{PROSE}\n\n0 1 2 3\n\n{OTHER}\n".encode(),
        "package/b.txt": gzip.compress(f"{OTHER}\n\n{PROSE} Or not.".encode()),
        "package/old/c.txt": b"What is skipped is not in the file that has been written.",
    }
    source = _source(_package(tmp_path / "packages", files))
    totals = build(source, tmp_path, tokenizer, Seen())
    assert (tmp_path / "texts.txt").read_text() == f"{PROSE}\n{OTHER}\n\n{PROSE} Or not.\n\n"
    assert (totals.documents, totals.paragraphs) == (2, 3)
    assert json.loads((tmp_path / "texts.json").read_text())["tokens"] == totals.tokens > 40
    assert not list(tmp_path.glob("*.partial"))


def test_a_finished_source_is_not_read_again_and_its_paragraphs_are_known(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    source = _source(_package(tmp_path / "packages", {"a.txt": PROSE.encode()}))
    first = build(source, tmp_path, tokenizer, Seen())
    (tmp_path / "packages" / "npm-texts-1.0").unlink()
    seen = Seen()
    assert build(source, tmp_path, tokenizer, seen) == first
    assert not seen.add(PROSE)


def test_a_source_ends_at_the_document_that_passes_its_cap(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    files = {f"{i}.txt": f"{PROSE} {'Again and again. ' * i}".encode() for i in range(9)}
    source = _source(_package(tmp_path / "packages", files), max_tokens=20)
    assert build(source, tmp_path, tokenizer, Seen()).documents == 2


def test_a_package_of_an_unknown_registry_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PackageError):
        Package("attic", "texts", "1.0", "0" * 64).download(tmp_path)


def test_archives_name_their_files_in_order(tmp_path: Path) -> None:
    package = _package(tmp_path / "p", {"b.txt": b"1", "a.txt": b"2", "c.md": b"3"})
    assert list(walk(package.download(tmp_path / "p"), ["*.txt"])) == [
        ("b.txt", b"1"),
        ("a.txt", b"2"),
    ]


def test_every_source_is_pinned_licensed_and_readable() -> None:
    sources = load_sources()
    assert len({source.name for source in sources}) == len(sources)
    for source in sources:
        assert source.reader in READERS
        assert source.licence
        assert source.packages
        for package in source.packages:
            assert len(package.sha256) == 64
            assert package.registry in {"debian", "npm", "pypi"}
