"""`hmi tenants …`: customers of the deployment (admin)."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import typer

from hmi.cli.output import note, print_json, print_table
from hmi.cli.session import MAX_UINT32, Session, command
from hmi.client import Quota, Tenant
from hmi.errors import AlreadyExists

MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6
"""As the gateway takes them. On the wire 0 is a weight that is not given, so it stands for 1."""

app = typer.Typer(help="Tenants (admin).", rich_markup_mode=None)

Name = Annotated[str, typer.Argument(metavar="NAME")]
Weight = Annotated[
    float | None,
    typer.Option(
        min=MIN_WEIGHT,
        max=MAX_WEIGHT,
        help="Share of the accelerator, relative to other tenants' when all have work.",
    ),
]

_QUOTA = "Quota; 0: the deployment's default."
_COLUMNS = ("tenant", "weight", "requests/s", "tokens/s", "queued", "models", "shares", "created")
_SHARES = "Whether its n-gram counts may shape tables that others share."


@command(app, "create")
def create(
    session: Session,
    name: Name,
    weight: Weight = 1.0,
    requests_per_second: Annotated[float, typer.Option(min=0, help=_QUOTA)] = 0.0,
    tokens_per_second: Annotated[float, typer.Option(min=0, help=_QUOTA)] = 0.0,
    max_queued_items: Annotated[int, typer.Option(min=0, max=MAX_UINT32, help=_QUOTA)] = 0,
    max_models: Annotated[int, typer.Option(min=0, max=MAX_UINT32, help=_QUOTA)] = 0,
    shares_counts: Annotated[bool, typer.Option("--shares-counts", help=_SHARES)] = False,
) -> None:
    """Create a tenant and print its key, this once."""
    quota = Quota(requests_per_second, tokens_per_second, max_queued_items, max_models)
    with session.client() as client:
        created = client.create_tenant(
            name, weight=weight or 1.0, quota=quota, shares_counts=shares_counts
        )
    if created.key is None:
        raise AlreadyExists(
            f"tenant {name} was made, but its key was lost on the way: "
            f"`hmi keys create --tenant {name}` makes another"
        )
    if session.as_json:
        print_json(created)
        return
    note(f"tenant {name} created; its key, shown this once:")
    print(created.key.secret)


@command(app, "set")
def set_(
    session: Session,
    name: Name,
    weight: Weight = None,
    requests_per_second: Annotated[float | None, typer.Option(min=0, help=_QUOTA)] = None,
    tokens_per_second: Annotated[float | None, typer.Option(min=0, help=_QUOTA)] = None,
    max_queued_items: Annotated[
        int | None, typer.Option(min=0, max=MAX_UINT32, help=_QUOTA)
    ] = None,
    max_models: Annotated[int | None, typer.Option(min=0, max=MAX_UINT32, help=_QUOTA)] = None,
    shares_counts: Annotated[
        bool | None, typer.Option("--shares-counts/--no-shares-counts", help=_SHARES)
    ] = None,
) -> None:
    """Change a tenant; what is not given stays."""
    changes: dict[str, Any] = {
        "requests_per_second": requests_per_second,
        "tokens_per_second": tokens_per_second,
        "max_queued_items": max_queued_items,
        "max_models": max_models,
    }
    given = {field: value for field, value in changes.items() if value is not None}
    with session.client() as client:
        before = client.get_tenant(name)
        tenant = client.update_tenant(
            name,
            weight=before.weight if weight is None else weight,
            quota=dataclasses.replace(before.quota, **given),
            shares_counts=before.shares_counts if shares_counts is None else shares_counts,
        )
    if session.as_json:
        print_json(tenant)
    else:
        _show(session, [tenant])


@command(app, "list")
def list_(session: Session) -> None:
    """List tenants."""
    with session.client() as client:
        _show(session, client.list_tenants())


@command(app, "get")
def get(session: Session, name: Name) -> None:
    """Show one tenant."""
    with session.client() as client:
        tenant = client.get_tenant(name)
    if session.as_json:
        print_json(tenant)
    else:
        _show(session, [tenant])


@command(app, "usage")
def usage(session: Session, name: Name) -> None:
    """Show what a tenant has used since the gateway started."""
    with session.client() as client:
        used = client.get_usage(name)
    if session.as_json:
        print_json(used)
    else:
        row = (name, used.num_items, used.num_tokens, used.num_errors, used.num_queued)
        print_table(("tenant", "items", "tokens", "errors", "queued"), [row])


@command(app, "delete")
def delete(session: Session, name: Name) -> None:
    """Delete a tenant with its keys, models and versions."""
    with session.client() as client:
        client.delete_tenant(name)
    if session.as_json:
        print_json({"deleted": name})
    else:
        note(f"tenant {name} deleted")


def _show(session: Session, tenants: list[Tenant]) -> None:
    if session.as_json:
        print_json(tenants)
        return
    print_table(
        _COLUMNS,
        (
            (
                tenant.name,
                tenant.weight,
                tenant.quota.requests_per_second or "default",
                tenant.quota.tokens_per_second or "default",
                tenant.quota.max_queued_items or "default",
                tenant.quota.max_models or "default",
                "yes" if tenant.shares_counts else "no",
                tenant.create_time,
            )
            for tenant in tenants
        ),
    )
