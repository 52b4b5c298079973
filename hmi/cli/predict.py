"""`hmi predict`: texts in, answers out."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hmi.cli.output import note, print_json, print_table
from hmi.cli.session import Session
from hmi.client import (
    Classification,
    Embedding,
    MultiLabel,
    Prediction,
    Regression,
    TokenTags,
)


def predict(
    session: Session,
    texts: Annotated[
        list[str], typer.Argument(metavar="TEXT...", help="Texts; a single - reads lines of stdin.")
    ],
    model: Annotated[str, typer.Option(help="The model.")],
    pair: Annotated[
        list[str] | None, typer.Option(help="Second text of a pair; once for every text.")
    ] = None,
    version: Annotated[int, typer.Option(help="Version; 0 follows the traffic split.")] = 0,
    priority: Annotated[int, typer.Option(help="Higher goes first, within the tenant.")] = 0,
    timeout: Annotated[float, typer.Option(help="Seconds for everything.")] = 30.0,
) -> None:
    """Ask a model about texts."""
    if texts == ["-"]:
        texts = [line.rstrip("\n") for line in sys.stdin]
    with session.client() as client:
        answers = client.predict(
            model, texts, pairs=pair, version=version, priority=priority, timeout=timeout
        )
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
