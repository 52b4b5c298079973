"""`hmi bases …`: the checkpoints that models share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmi.cli.output import note, print_json, print_table, upload_bar
from hmi.cli.session import Session, command, is_quiet
from hmi.client import Base

_DIRECTORY = (
    "A Hugging Face checkpoint; with local_encoder.safetensors and root_keys.safetensors in it, "
    "its lower layers are looked up."
)

app = typer.Typer(help="Bases.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME")]


@command(app, "add")
def add(
    session: Session,
    name: Name,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help=_DIRECTORY)],
) -> None:
    """Register a checkpoint as a base (admin)."""
    with session.client() as client, upload_bar(name, is_quiet=is_quiet(session)) as progress:
        base = client.add_base(name, directory, progress=progress)
    if session.as_json:
        print_json(base)
    else:
        note(f"base {name} added: {base.architecture}, {base.num_layers} layers{_split(base)}")


@command(app, "list")
def list_(session: Session) -> None:
    """List bases."""
    with session.client() as client:
        bases = client.list_bases()
    if session.as_json:
        print_json(bases)
        return
    print_table(
        ("base", "architecture", "layers", "looked up", "hidden", "max tokens", "digest"),
        (
            (
                b.name,
                b.architecture,
                b.num_layers,
                b.split.layer if b.split else None,
                b.hidden_size,
                b.max_tokens,
                b.digest[:12],
            )
            for b in bases
        ),
    )


@command(app, "delete")
def delete(session: Session, name: Name) -> None:
    """Delete a base that no version uses (admin)."""
    with session.client() as client:
        client.delete_base(name)
    if session.as_json:
        print_json({"deleted": name})
    else:
        note(f"base {name} deleted")


def _split(base: Base) -> str:
    return f", those below {base.split.layer} looked up" if base.split else ""
