"""`hmi predict`: texts in, answers out."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import typer

from hmi.cli.output import note, print_json, print_table
from hmi.cli.session import MAX_UINT32, Session
from hmi.cli.wording import of_a_later_piece
from hmi.client import (
    Classification,
    Client,
    Embedding,
    MultiLabel,
    Prediction,
    Predictions,
    Regression,
    TokenTags,
)
from hmi.errors import DeadlineExceeded, InvalidArgument

MAX_TEXTS = 4096
"""Of one request; more are sent in pieces."""
MAX_INT32 = 2**31 - 1


def predict(
    session: Session,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Texts; a single - reads lines of stdin.")
    ],
    model: Annotated[str, typer.Option(help="The model.")],
    pair: Annotated[
        list[str] | None, typer.Option(help="Second text of a pair; once for every text.")
    ] = None,
    version: Annotated[
        int, typer.Option(min=0, max=MAX_UINT32, help="Version; 0 follows the traffic split.")
    ] = 0,
    priority: Annotated[
        int,
        typer.Option(
            min=-MAX_INT32 - 1, max=MAX_INT32, help="Higher goes first, within the tenant."
        ),
    ] = 0,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds for everything.")] = 30.0,
) -> None:
    """Ask a model about texts."""
    if texts == ["-"]:
        texts = _read_lines(sys.stdin)
    if pair is not None and len(pair) != len(texts):
        raise InvalidArgument(f"{len(pair)} --pair for {len(texts)} texts", field="pairs")
    asked = _Asked(model, version, priority)
    with session.client() as client:
        try:
            answers = _ask(client, asked, texts, pair, timeout)
        except DeadlineExceeded as error:
            raise DeadlineExceeded(
                f"no answer within {timeout:g} s: give a longer --timeout"
            ) from error
    if session.as_json:
        print_json(answers)
        return
    print_table(
        ("text", "answer", "score"),
        (
            (text, *_describe(prediction))
            for text, prediction in zip(texts, answers.predictions, strict=True)
        ),
    )
    source = answers.provenance
    note(f"{source.tenant}/{source.model} version {source.version} ({source.digest[:12]})")


@dataclass(frozen=True, slots=True)
class _Asked:
    model: str
    version: int
    priority: int


def _read_lines(lines: Iterable[str]) -> list[str]:
    """The texts of a file, one a line, of Windows too; empty lines are no texts."""
    stripped = [line.rstrip("\r\n") for line in lines]
    texts = [line for line in stripped if line.strip()]
    if not texts:
        raise InvalidArgument("no text on stdin: give one a line", field="inputs")
    if num_empty := len(stripped) - len(texts):
        note(f"empty lines left out: {num_empty}")
    return texts


def _ask(
    client: Client, asked: _Asked, texts: list[str], pairs: list[str] | None, timeout: float
) -> Predictions:
    """The answers to any number of texts, all by the version that answered the first."""
    end = time.monotonic() + timeout
    version = asked.version
    pieces: list[Predictions] = []
    for begin in range(0, len(texts), MAX_TEXTS):
        try:
            piece = client.predict(
                asked.model,
                texts[begin : begin + MAX_TEXTS],
                pairs=None if pairs is None else pairs[begin : begin + MAX_TEXTS],
                version=version,
                priority=asked.priority,
                timeout=max(0.0, end - time.monotonic()),
            )
        except InvalidArgument as error:
            raise of_a_later_piece(error, begin) from error
        version = piece.provenance.version
        pieces.append(piece)
    every = tuple(prediction for piece in pieces for prediction in piece)
    return Predictions(pieces[0].provenance, every)


def _describe(prediction: Prediction) -> tuple[str, float | None]:
    match prediction:
        case Classification():
            return prediction.label, prediction.score
        case MultiLabel():
            return ", ".join(prediction.labels) or "none", None
        case Regression():
            return ", ".join(f"{value:.4g}" for value in prediction.values), None
        case TokenTags():
            return "; ".join(f"{s.text} = {s.label}" for s in prediction.spans) or "none", None
        case Embedding():
            head = ", ".join(f"{value:.3f}" for value in prediction.values[:4])
            return f"[{head}, …] of {len(prediction.values)}", None
    return type(prediction).__name__, None
