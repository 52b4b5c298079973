"""`hmi domains …`: the trees of tables of split bases."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hmi.cli.domain_adapt import adapted, encoder_of
from hmi.cli.domain_counts import counted
from hmi.cli.domain_options import (
    ROOT,
    Adapt,
    AdaptOut,
    AdaptTokens,
    Alpha,
    BaseDir,
    BaseName,
    Budget,
    Corpus,
    Everything,
    HalfLife,
    NewPath,
    NoWait,
    ParentEncoder,
    Path_,
    Policy,
    Timeout,
    as_bytes,
    as_policy,
    inner,
    is_within,
    named,
)
from hmi.cli.domain_reasons import about_rows, too_few_share, unchanged
from hmi.cli.domain_svg import tree_svg
from hmi.cli.domain_views import stats_table, tree_as_json, tree_table, update_plan
from hmi.cli.domain_waits import wait_for_table, wait_for_update
from hmi.cli.output import note, print_json, to_json, upload_bar
from hmi.cli.session import Session, command, is_quiet
from hmi.client import Base, Client, Domain, MissPolicy
from hmi.corpus import check_files
from hmi.errors import InvalidArgument, NotFound

app = typer.Typer(help="Domains: trees of lookup tables.", rich_markup_mode=None)

_DEFAULT_SPLIT_BASE = "hminilm"


@command(app, "create")
def create(
    session: Session,
    path: NewPath,
    base: BaseName = None,
    corpus: Corpus = None,
    base_dir: BaseDir = None,
    adapt: Adapt = False,
    parent_encoder: ParentEncoder = None,
    adapt_tokens: AdaptTokens = 500_000,
    adapt_out: AdaptOut = None,
    alpha: Alpha = None,
    budget: Budget = None,
    policy: Policy = None,
    half_life: HalfLife = None,
    no_wait: NoWait = False,
    timeout: Timeout = 600.0,
) -> None:
    """Add a domain below its path's prefix, and fill its table from a corpus.

    With --tenant, or a tenant's key, only that tenant sees it; otherwise everyone does. A tenant's
    domain bears its name, as `acme` or `news/acme`, or is below one that does, as `acme/faq`. A
    row is made of n-grams that the corpus has twice or more and the domains above have not.
    """
    if not inner(path):
        raise InvalidArgument(
            "the root comes with its base: name a domain below it, such as news; "
            f"`hmi domains set {ROOT}` changes the root",
            field="path",
        )
    files = corpus or []
    check_files(files)
    if adapt and not files:
        raise InvalidArgument("--adapt needs a --corpus", field="corpus")
    for field, given in (("parent_encoder", parent_encoder), ("adapt_out", adapt_out)):
        if given and not adapt:
            option = field.replace("_", "-")
            raise InvalidArgument(f"--{option} is for --adapt, which is not given", field=field)
    miss_policy, byte_budget = as_policy(policy), as_bytes(budget)
    with session.client() as client:
        of = _split_base(client, base)
        # What is wrong with it is said before a corpus is counted for minutes.
        client.create_domain(of.name, path, dry_run=True)
        encoder = None
        if adapt:
            parent = client.get_domain(of.name, path.rpartition("/")[0])
            known = encoder_of(parent, base_dir, parent_encoder)
            encoder = adapted(
                session, files, known, base_dir=base_dir, out=adapt_out, num_tokens=adapt_tokens
            )
        counts = counted(session, of, files, base_dir) if files else None
        with upload_bar(path, is_quiet=is_quiet(session)) as progress:
            domain = client.create_domain(
                of.name,
                path,
                counts=counts.to_bytes() if counts else None,
                encoder=encoder,
                miss_policy=miss_policy or MissPolicy.UNSPECIFIED,
                alpha=alpha or 0.0,
                byte_budget=byte_budget or 0,
                half_life_tokens=half_life or 0,
                progress=progress,
            )
        if not no_wait:
            domain = wait_for_table(session, client, domain, timeout)
            [made] = [one for one in client.list_domains(of.name) if one.domain.path == path]
    _changed(session, domain)
    if not no_wait and not session.as_json:
        note(about_rows(made, counts))


@command(app, "tree")
def tree(
    session: Session,
    base: BaseName = None,
    svg: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="Draw it into a file.")
    ] = None,
) -> None:
    """Show a base's tree: rows, bytes, and how lookups were answered."""
    with session.client() as client:
        name = _split_base(client, base).name
        nodes = client.list_domains(name)
    if svg is not None:
        svg.write_text(tree_svg(name, nodes), encoding="utf-8")
        note(f"{svg} written")
    if session.as_json:
        print_json(tree_as_json(name, nodes))
    elif svg is None:
        tree_table(nodes)


@command(app, "stats")
def stats(session: Session, path: Everything = ROOT, base: BaseName = None) -> None:
    """Show what each domain holds, and what its models take beside it."""
    with session.client() as client:
        name = _split_base(client, base).name
        nodes = client.list_domains(name)
    top = inner(path)
    chosen = [one for one in nodes if is_within(one.domain.path, top)]
    if not chosen:
        raise NotFound(f"base '{name}' has no domain '{path}': see `hmi domains tree`")
    if session.as_json:
        print_json(chosen)
    else:
        stats_table(chosen)


@command(app, "update")
def update(
    session: Session,
    path: Everything = ROOT,
    base: BaseName = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    no_wait: NoWait = False,
    timeout: Timeout = 600.0,
) -> None:
    """Make new tables from what corpora and traffic counted (admin), after showing what changes.

    A line for each domain and length of n-gram: rows that come in (some moved up from sub-domains),
    that go out, that wait for a later update, and that there are afterwards; and the share of what
    is counted that has a row, here or above. Domains that stay as they are are named with the
    reason.
    """
    top = inner(path)
    with session.client() as client:
        name = _split_base(client, base).name
        planned = client.update_domains(name, top, dry_run=True)
        nodes = [one for one in client.list_domains(name) if is_within(one.domain.path, top)]
        reasons = unchanged(nodes, planned.changes)
        if not session.as_json:
            update_plan(planned.changes, reasons)
            is_shared = any(not one.domain.tenant for one in nodes)
            if is_shared and (few := too_few_share(client.list_tenants())):
                note(few)
        begun = planned
        if planned.changes and not dry_run:
            begun = client.update_domains(name, top)
            if begun.update_id and not no_wait:
                wait_for_update(session, client, name, begun.update_id, timeout)
    if session.as_json:
        print_json({**to_json(begun), "unchanged": reasons})
    elif begun.update_id:
        note(f"update {begun.update_id} of {name} {'begun' if no_wait else 'committed'}")
    elif dry_run:
        note("dry run: nothing was changed")
    else:
        note(f"nothing to update in {name}")


@command(app, "rollback")
def rollback(session: Session, path: Path_, base: BaseName = None) -> None:
    """Return a domain to the rows it had before its last change."""
    with session.client() as client:
        _changed(session, client.roll_back_domain(_split_base(client, base).name, inner(path)))


@command(app, "set")
def set_(
    session: Session,
    path: Path_,
    base: BaseName = None,
    alpha: Alpha = None,
    budget: Budget = None,
    policy: Policy = None,
    half_life: HalfLife = None,
    freeze: Annotated[
        bool | None,
        typer.Option("--freeze/--no-freeze", help="Whether scheduled updates pass it by."),
    ] = None,
) -> None:
    """Change a domain; what is not given stays."""
    miss_policy, byte_budget = as_policy(policy), as_bytes(budget)
    with session.client() as client:
        domain = client.set_domain(
            _split_base(client, base).name,
            inner(path),
            miss_policy=miss_policy,
            alpha=alpha,
            byte_budget=byte_budget,
            half_life_tokens=half_life,
            is_frozen=freeze,
        )
    _changed(session, domain)


@command(app, "delete")
def delete(session: Session, path: Path_, base: BaseName = None) -> None:
    """Delete a domain that has no children and no models."""
    with session.client() as client:
        name = _split_base(client, base).name
        client.delete_domain(name, inner(path))
    if session.as_json:
        print_json({"deleted": path, "base": name})
    else:
        note(f"domain {path} of {name} deleted")


def _split_base(client: Client, name: str | None) -> Base:
    """The base named, or the one that can be meant."""
    if name is not None:
        base = client.get_base(name)
        if base.split is None:
            raise InvalidArgument(f"base {name} is not split: it has no domains", field="base")
        return base
    split = {base.name: base for base in client.list_bases() if base.split is not None}
    if _DEFAULT_SPLIT_BASE in split:
        return split[_DEFAULT_SPLIT_BASE]
    if len(split) == 1:
        return next(iter(split.values()))
    known = ", ".join(split) or "there is none"
    raise InvalidArgument(f"--base is needed: name a split base ({known})", field="base")


def _changed(session: Session, domain: Domain) -> None:
    if session.as_json:
        print_json(domain)
        return
    seen = f", only {domain.tenant} sees it" if domain.tenant else ""
    table = f"table {domain.table_version[:12]}" if domain.table_version else "no table yet"
    note(f"domain {named(domain.path)} of {domain.base}: {table}{seen}")
