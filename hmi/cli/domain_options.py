"""The options of `hmi domains …`, and what they mean.

Knows texts a user types; does not know any command.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmi.client import MissPolicy
from hmi.errors import InvalidArgument

ROOT = "/"
"""How a command line names a tree's root, whose path is empty."""

_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

Path_ = Annotated[
    str, typer.Argument(metavar="PATH", help=f"Such as news/sport; {ROOT} is the root.")
]
NewPath = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help=f"Such as news, or news/sport below it; the root, {ROOT}, comes with its base.",
    ),
]
Everything = Annotated[
    str, typer.Argument(metavar="PATH", help="This node and those below it; all by default.")
]
BaseName = Annotated[
    str | None, typer.Option(help="Name of a split base; needed if there are several.")
]
Alpha = Annotated[
    float | None,
    typer.Option(min=0, max=1, help="Share of counted n-grams to cover; 0: default, 0.5."),
]
Budget = Annotated[
    str | None, typer.Option(metavar="BYTES", help="For its own rows, such as 64M; 0: default.")
]
Policy = Annotated[
    str | None, typer.Option(help="What stands for a miss: backoff (default) or compute.")
]
HalfLife = Annotated[
    int | None, typer.Option(min=0, help="Tokens after which a count weighs half; 0: default.")
]
Corpus = Annotated[
    list[Path] | None,
    typer.Option(metavar="FILE...", help="UTF-8 text, a text a line, to take n-grams from."),
]
BaseDir = Annotated[
    Path | None,
    typer.Option(exists=True, file_okay=False, help="The base's checkpoint, if not hminilm's."),
]
Adapt = Annotated[
    bool, typer.Option("--adapt", help="Learn an encoder of its own from the corpus first.")
]
ParentEncoder = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="The parent's encoder, to adapt it."),
]
AdaptTokens = Annotated[int, typer.Option(min=1, help="Tokens to adapt on, counted with repeats.")]
AdaptOut = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", file_okay=False, help="Keep the adapted encoder; a broken run goes on."
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Do not wait until tables are made.")]
Timeout = Annotated[float, typer.Option(min=0, help="Seconds to wait for tables.")]


def inner(path: str) -> str:
    """The path as it is known inside, where the root's is empty.

    Raises:
        InvalidArgument: It is empty already: a shell's unset variable must not mean a whole tree.
    """
    if not path:
        raise InvalidArgument(f"PATH is empty: name a domain; {ROOT} is the root", field="path")
    return "" if path == ROOT else path


def is_within(path: str, top: str) -> bool:
    """Whether a node is `top` or below it."""
    return not top or path == top or path.startswith(f"{top}/")


def as_policy(value: str | None) -> MissPolicy | None:
    """--policy.

    Raises:
        InvalidArgument: It is none.
    """
    if value is None:
        return None
    if value not in ("backoff", "compute"):
        raise InvalidArgument("--policy is backoff or compute", field="policy")
    return MissPolicy(value)


def as_bytes(value: str | None) -> int | None:
    """--budget, in bytes.

    Raises:
        InvalidArgument: It is no size.
    """
    if value is None:
        return None
    number, unit = value.strip().lower().removesuffix("b").removesuffix("i"), 1
    if number[-1:] in _UNITS:
        number, unit = number[:-1], _UNITS[number[-1]]
    if not number.isdecimal():
        raise InvalidArgument(f"--budget {value!r} is no size such as 64M", field="budget")
    return int(number) * unit


def named(path: str) -> str:
    """A path as a command line has it."""
    return path or ROOT
