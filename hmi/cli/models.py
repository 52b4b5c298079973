"""`hmi models …`: a tenant's models and their versions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmi.cli.domain_options import ROOT, inner, named
from hmi.cli.output import note, print_json, print_table, traffic, upload_bar
from hmi.cli.session import MAX_UINT32, Session, command, is_quiet
from hmi.client import Model, PackOptions, Task, Version
from hmi.errors import InvalidArgument
from hmi.pack import domain_of, trained_base_of

app = typer.Typer(help="A tenant's models.", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="MODEL")]
VersionNumber = Annotated[int, typer.Argument(metavar="VERSION", min=1, max=MAX_UINT32)]
_SHORT_TASKS = {
    Task.SEQUENCE_CLASSIFICATION: "classes",
    Task.MULTI_LABEL_CLASSIFICATION: "labels",
    Task.TOKEN_CLASSIFICATION: "spans",
}
"""So that a line of a table fits 80 columns; --json has the full names."""


@command(app, "push")
def push(
    session: Session,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="What training wrote.")],
    name: Annotated[str, typer.Option(help="The model; made if there is none of that name.")],
    base: Annotated[
        str | None, typer.Option(help="Its base; by default the one DIR names, or minilm.")
    ] = None,
    domain: Annotated[
        str | None, typer.Option(help="Domain whose tables it reads (split bases); / is the root.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Read the domain's latest tables, not today's.")
    ] = False,
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Leave the traffic as it is.")
    ] = False,
    task: Annotated[
        str | None, typer.Option(help="What the head does; only if DIR does not say.")
    ] = None,
    labels: Annotated[str | None, typer.Option(help="Labels, parted by commas.")] = None,
    pooling: Annotated[str | None, typer.Option(help="mean or cls (embeddings).")] = None,
    normalize: Annotated[bool | None, typer.Option(help="Unit length (embeddings).")] = None,
) -> None:
    """Upload a trained directory as the model's next version.

    The model's traffic goes to it unless --no-activate is given.
    """
    options = PackOptions(
        task=task,
        labels=None if labels is None else [one.strip() for one in labels.split(",")],
        pooling=pooling,
        normalize=normalize,
    )
    path = domain or domain_of(directory)
    with session.client() as client, upload_bar(name, is_quiet=is_quiet(session)) as progress:
        version = client.push_version(
            name,
            directory,
            base=base,
            domain=inner(path or ROOT),
            follow=follow,
            activate=not no_activate,
            options=options,
            progress=progress,
        )
    if session.as_json:
        print_json(version)
    else:
        _note_guesses(directory, version, has_labels=labels is not None, has_domain=bool(path))
        note(
            f"model {name} of {version.tenant}: version {version.number}, {version.digest[:12]}, "
            f"on {version.base}{_tables(version)}"
        )


@command(app, "list")
def list_(session: Session) -> None:
    """List models."""
    with session.client() as client:
        _show(session, client.list_models())


@command(app, "versions")
def versions(session: Session, model: Name) -> None:
    """List a model's versions."""
    with session.client() as client:
        found = client.list_versions(model)
        shares = {} if session.as_json else client.get_model(model).traffic
    if session.as_json:
        print_json(found)
        return
    print_table(
        ("version", "traffic", "task", "labels", "adapter", "base", "digest", "pushed"),
        (
            (
                v.number,
                f"{shares[v.number]} %" if v.number in shares else None,
                _SHORT_TASKS.get(v.task, v.task),
                len(v.labels) or None,
                v.adapter_type,
                v.base,
                v.digest[:12],
                v.create_time,
            )
            for v in found
        ),
        whole=("version", "traffic", "digest", "pushed"),
    )


@command(app, "activate")
def activate(session: Session, model: Name, version: VersionNumber) -> None:
    """Send all of a model's requests to one version."""
    with session.client() as client:
        _changed(session, client.activate(model, version))


@command(app, "rollback")
def rollback(session: Session, model: Name) -> None:
    """Undo the last change of traffic; a second time, undo that."""
    with session.client() as client:
        _changed(session, client.roll_back(model))


@command(app, "traffic")
def split(
    session: Session,
    model: Name,
    targets: Annotated[list[str], typer.Argument(metavar="VERSION=PERCENT...")],
) -> None:
    """Split a model's requests over versions, such as `1=90 2=10`."""
    shares = _parse_split(targets)
    with session.client() as client:
        _changed(session, client.set_traffic(model, shares))


@command(app, "pin")
def pin(
    session: Session,
    model: Name,
    off: Annotated[bool, typer.Option("--off", help="Pin it no longer.")] = False,
) -> None:
    """Keep a model resident in device memory."""
    with session.client() as client:
        _changed(session, client.set_pinned(model, not off))


@command(app, "delete")
def delete(
    session: Session,
    model: Name,
    version: Annotated[
        int | None, typer.Option(min=1, max=MAX_UINT32, help="Delete only this version.")
    ] = None,
) -> None:
    """Delete a model, or one version that gets no traffic."""
    with session.client() as client:
        if version is None:
            client.delete_model(model)
        else:
            client.delete_version(model, version)
    what = model if version is None else f"{model} version {version}"
    if session.as_json:
        print_json({"deleted": model, "version": version})
    else:
        note(f"{what} deleted")


def _tables(version: Version) -> str:
    """Which tables a version reads; nothing if its base has none."""
    if not version.table_version:
        return ""
    which = "the latest tables" if version.follow else "today's tables"
    return f" with {which} of {named(version.domain)}"


def _note_guesses(directory: Path, version: Version, *, has_labels: bool, has_domain: bool) -> None:
    """Say what was assumed and may be wrong: nobody else would notice."""
    if not has_labels and version.labels and version.labels[0] == "LABEL_0":
        note(f"no labels given: LABEL_0 … LABEL_{len(version.labels) - 1}; give --labels")
    if version.table_version and not has_domain:
        note(f"no domain given: it reads the root's tables; `--domain {ROOT}` says that it should")
    trained_on = trained_base_of(directory)
    # A hub's name for the base often holds the short one: sentence-transformers/all-MiniLM-L6-v2.
    if trained_on is not None and version.base.lower() not in trained_on.lower():
        note(
            f"the adapter names {trained_on} as its base, not {version.base}: check that they are "
            "one"
        )


def _parse_split(targets: list[str]) -> dict[int, int]:
    shares: dict[int, int] = {}
    for target in targets:
        version, _, percent = target.partition("=")
        if not version.isdecimal() or not percent.isdecimal():
            raise InvalidArgument(f"{target!r} is not VERSION=PERCENT", field="traffic")
        if int(version) in shares:
            raise InvalidArgument(f"version {version} is named twice", field="traffic")
        if int(percent) > 100:
            raise InvalidArgument(f"{target}: a share is at most 100 percent", field="traffic")
        shares[int(version)] = int(percent)
    return shares


def _changed(session: Session, model: Model) -> None:
    if session.as_json:
        print_json(model)
    else:
        pinned = ", pinned" if model.pinned else ""
        note(f"{model.name}: traffic {traffic(model.traffic)}{pinned}")


def _show(session: Session, models: list[Model]) -> None:
    if session.as_json:
        print_json(models)
        return
    print_table(
        ("model", "tenant", "traffic", "last version", "pinned", "created"),
        (
            (
                m.name,
                m.tenant,
                traffic(m.traffic),
                m.last_version,
                "yes" if m.pinned else "no",
                m.create_time,
            )
            for m in models
        ),
    )
