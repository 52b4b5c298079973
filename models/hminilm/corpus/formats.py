"""Turns one file of a package into documents of plain paragraphs, a reader for each format.

Does not know which packages there are, nor what counts as prose: `prose` judges that.
"""

import email
import email.policy
import html
import json
import re
import zlib
from collections.abc import Callable, Iterator

# A document is its paragraphs in order, each on one line.
Document = list[str]

_UNSEEN = re.compile(
    r"<!--.*?-->"
    r"|<(script|style|head|pre|nav|svg|math|programlisting|screen|code-block)\b.*?</\1\s*>",
    re.S | re.I,
)
_INLINE = (
    "a|abbr|acronym|app|b|big|catchWord|cite|cmd|code|dfn|divineName|em|file|font|foreign|gui|"
    "guiseq|hi|i|input|ins|kbd|key|keyseq|link|mark|option|output|q|rdg|reference|s|samp|"
    "scripRef|seg|small|span|strong|sub|sup|sys|transChange|tt|u|var|w"
)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.I)
_TAG = re.compile(r"<[^<>]*>")
_BLANK_LINE = re.compile(r"\n[ \t\r\f]*\n")
_ROLE = re.compile(r":[a-z:]+:`([^`<]*)[^`]*`|``?([^`]+)``?_{0,2}|\*\*?([^*\s][^*]*)\*\*?")
_POD_WIDE_CODE = re.compile(r"[BCEFILSX]<<+\s(.*?)\s>>+", re.S)
_POD_CODE = re.compile(r"[BCEFILSX]<([^<>]*)>")
_POD_COMMAND = re.compile(r"^=.*$", re.M)
_NEW_SENSE = re.compile(
    r"^\s+(?:(?:n|v|adj|adv)\s+)?(?:\d+[.:]|\([a-z]\))\s|^\s+(?:n|v|adj|adv)\s*:\s"
)
_APPARATUS = re.compile(r"\\[^\\]*\\,?|\[[^\[\]]*\]|--\s?[A-Z][^\n]*$|<[a-z, ]+>")
_LITERAL = re.compile(r'`([^`]*)`|\[\[(.*?)\]\]|"((?:[^"\\]|\\.|"")*)"', re.S)
_R_LENGTH_BYTES = 4
_MARKUP = re.compile(r"<[^<>\n]*>|\\[nt]")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _paragraphs(text: str) -> Document:
    return [line for part in _BLANK_LINE.split(text) if (line := _one_line(part))]


def _decode(data: bytes) -> str:
    """UTF-8, or Latin-1 where a file is older than that."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_html(data: bytes) -> Iterator[Document]:
    """HTML and XML prose: a paragraph is the text between two tags that are not inline."""
    text = _INLINE_TAG.sub("", _UNSEEN.sub("\n\n", _decode(data)))
    yield _paragraphs(html.unescape(_TAG.sub("\n\n", text)))


def read_text(data: bytes) -> Iterator[Document]:
    """Plain text, its hard line breaks undone; a blank line ends a paragraph."""
    yield _paragraphs(_decode(data))


def read_rst(data: bytes) -> Iterator[Document]:
    """reStructuredText, AsciiDoc: inline marks are dropped, indented blocks left out."""
    text = _ROLE.sub(lambda found: next(filter(None, found.groups()), ""), _decode(data))
    blocks = (part.strip("\n") for part in _BLANK_LINE.split(text))
    yield [_one_line(part) for part in blocks if part and not part[0].isspace()]


def read_pod(data: bytes) -> Iterator[Document]:
    """Perl's documentation: formatting codes and commands are dropped, verbatim blocks left out."""
    text = _POD_WIDE_CODE.sub(r"\1", _POD_COMMAND.sub("", _decode(data)))
    while text != (plain := _POD_CODE.sub(r"\1", text)):
        text = plain
    yield from read_rst(text.encode())


def read_dictionary(data: bytes) -> Iterator[Document]:
    """dictd's layout: a headword at the margin, its senses indented, each sense a paragraph.

    Pronunciations, etymologies and the names of quoted authors are left out; a sense is
    written as "headword: sense", so that it can be understood alone.
    """
    headword, senses, sense = "", [], list[str]()
    for line in [*_decode(data).splitlines(), "end"]:
        is_headword = bool(line) and not line[0].isspace()
        if is_headword or not line.strip() or _NEW_SENSE.match(line):
            if sense:
                senses.append(_sense(headword, " ".join(sense)))
            sense = []
        if is_headword:
            if senses:
                yield senses
            headword, senses = line.split("\\")[0].strip(), []
        elif line.strip():
            sense.append(_NEW_SENSE.sub("", line).strip())


def _sense(headword: str, text: str) -> str:
    plain = _APPARATUS.sub("", text).translate({ord("{"): None, ord("}"): None})
    return _one_line(f"{headword}: {plain}" if headword and len(headword) < 40 else plain)


def read_fortunes(data: bytes) -> Iterator[Document]:
    """Cookies parted by lines of percent signs; each is a document."""
    for cookie in re.split(r"\n%+\n", _decode(data)):
        yield _paragraphs(cookie)


def read_mail(data: bytes) -> Iterator[Document]:
    """One message's plain text, without its headers, what it quotes and its signature."""
    message = email.message_from_bytes(data, policy=email.policy.compat32)
    for part in message.walk():
        if part.get_content_type() != "text/plain":
            continue
        payload = part.get_payload(decode=True)
        if isinstance(payload, bytes):
            body = _decode(payload).replace("\r\n", "\n").split("\n-- \n")[0]
            own = (line for line in body.split("\n") if not line.lstrip().startswith((">", "|")))
            yield _paragraphs("\n".join(own))


def read_literals(data: bytes) -> Iterator[Document]:
    """The strings of a game's scripts: what its people say and its places look like."""
    paragraphs: Document = []
    for found in _LITERAL.finditer(_decode(data)):
        literal = next(filter(None, found.groups()), "").replace('""', '"').replace('\\"', '"')
        paragraphs += _paragraphs(_MARKUP.sub(" ", literal))
    yield paragraphs


def read_json(data: bytes) -> Iterator[Document]:
    """Every string of a JSON file, keys left out, in the file's order."""
    paragraphs: Document = []
    pending: list[object] = [json.loads(data)]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            paragraphs += [
                _one_line(_TAG.sub(" ", line)) for line in value.split("\n") if line.strip()
            ]
        elif isinstance(value, dict):
            pending.extend(reversed(value.values()))
        elif isinstance(value, list):
            pending.extend(reversed(value))
    yield paragraphs


def read_sword(data: bytes) -> Iterator[Document]:
    """A module of the SWORD project: zlib streams with zeros between, each a book's mark-up."""
    while data:
        stream = zlib.decompressobj()
        block = stream.decompress(data)
        yield from read_html(block)
        data = stream.unused_data.lstrip(b"\0")


def read_r_strings(data: bytes) -> Iterator[Document]:
    """The strings of R's lazy-load database: a length and a zlib stream for each object.

    R's serialisation (R Internals, 1.8) writes a string as its flags, its length and its bytes;
    a line of a book is one string, an empty string ends a paragraph. An object is a document.
    """
    while data:
        stream = zlib.decompressobj()
        block = stream.decompress(data[_R_LENGTH_BYTES:])
        yield _paragraphs("\n".join(_r_strings(block)))
        data = stream.unused_data


def _r_strings(stream: bytes) -> Iterator[str]:
    for found in re.finditer(rb"\x00[\x04\x00][\x00\x80]\x09(?=\x00\x00)", stream):
        size = int.from_bytes(stream[found.end() : found.end() + 4], "big")
        yield _decode(stream[found.end() + 4 : found.end() + 4 + size])


READERS: dict[str, Callable[[bytes], Iterator[Document]]] = {
    "dictionary": read_dictionary,
    "fortunes": read_fortunes,
    "html": read_html,
    "json": read_json,
    "literals": read_literals,
    "mail": read_mail,
    "pod": read_pod,
    "r-strings": read_r_strings,
    "rst": read_rst,
    "sword": read_sword,
    "text": read_text,
}
