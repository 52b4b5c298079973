"""`hmi keys …`: API keys (admin)."""

from __future__ import annotations

from typing import Annotated

import typer

from hmi.cli.output import note, print_json, print_table
from hmi.cli.session import Session, command
from hmi.client import Role

app = typer.Typer(help="API keys (admin).", rich_markup_mode=None)


@command(app, "create")
def create(
    session: Session,
    admin: Annotated[bool, typer.Option("--admin", help="An admin key, of no tenant.")] = False,
) -> None:
    """Make a further key for --tenant and print it, this once."""
    tenant = "" if admin else session.required_tenant()
    with session.client() as client:
        created = client.create_api_key(tenant, role=Role.ADMIN if admin else Role.TENANT)
    if session.as_json:
        print_json(created)
        return
    note(f"key {created.api_key.key_id} created; shown this once:")
    print(created.secret)


@command(app, "list")
def list_(session: Session) -> None:
    """List the keys of --tenant, or the admin keys."""
    with session.client() as client:
        keys = client.list_api_keys(session.tenant or "")
    if session.as_json:
        print_json(keys)
        return
    print_table(
        ("key", "tenant", "role", "created", "revoked"),
        ((k.key_id, k.tenant or None, k.role, k.create_time, k.revoke_time) for k in keys),
    )


@command(app, "revoke")
def revoke(session: Session, key_id: Annotated[str, typer.Argument(metavar="KEY_ID")]) -> None:
    """End a key."""
    with session.client() as client:
        client.revoke_api_key(key_id)
    if session.as_json:
        print_json({"revoked": key_id})
    else:
        note(f"key {key_id} revoked")
