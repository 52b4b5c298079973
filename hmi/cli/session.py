"""What commands that talk to a gateway share: options, connection, and the way to declare them.

Knows where address and key come from; does not know any command.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from hmi.client import Client, RetryPolicy
from hmi.errors import InvalidArgument, PermissionDenied

P = ParamSpec("P")

DEFAULT_DATA_DIR = Path(".hmi")
MAX_UINT32 = 2**32 - 1
"""The largest version and the largest quota."""

_RETRY = RetryPolicy(max_attempts=4)
"""Under a second: somebody is waiting who can see the error and try again."""

_LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DataDir = Annotated[
    Path, typer.Option("--data-dir", envvar="HMI_DATA_DIR", help="A local stack's directory.")
]


@dataclass(frozen=True, slots=True)
class Session:
    """The shared options of one command line."""

    address: str | None
    key: str | None
    tenant: str | None
    data_dir: Path
    as_json: bool

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the gateway that the options, the environment or the data directory name.

        What an option would mend is said in terms of the options.

        Raises:
            InvalidArgument: No address or no key is to be had, or an admin key names no tenant.
            PermissionDenied: An admin key is needed.
        """
        address = self._address()
        key = self._key(address)
        with Client(address, key=key, tenant=self.tenant, retry=_RETRY) as client:
            try:
                yield client
            except PermissionDenied as error:
                if error.reason != "NOT_ADMIN":
                    raise
                raise PermissionDenied(
                    f"{error.message}: ask an admin, or, if you are one: {self._about_key()}",
                    reason=error.reason,
                ) from error
            except InvalidArgument as error:
                if error.field != "x-hmi-tenant":
                    raise
                raise InvalidArgument(
                    "an admin key has no models of its own: give --tenant NAME (or HMI_TENANT)",
                    field="tenant",
                ) from error

    def _about_key(self) -> str:
        admin_key = f"the local stack's admin key is in {self.data_dir / 'admin.key'}"
        if self.key is not None and self.key == os.environ.get("HMI_API_KEY"):
            return f"HMI_API_KEY is a tenant's key: unset it, or give --key ({admin_key})"
        return f"the key given is a tenant's: give another --key ({admin_key})"

    def required_tenant(self) -> str:
        """The tenant named by --tenant.

        Raises:
            InvalidArgument: None is.
        """
        if self.tenant is None:
            raise InvalidArgument("--tenant is needed", field="tenant")
        return self.tenant

    def _address(self) -> str:
        address = self.address or _first_line(self.data_dir / "address")
        if address is None:
            raise InvalidArgument(
                f"no stack runs in {self.data_dir}: start one with `hmi up`, or give --address",
                field="address",
            )
        return address

    def _key(self, address: str) -> str:
        key = self.key
        if key is None and address.rpartition(":")[0] in _LOCAL_HOSTS:
            # The local stack's admin key never leaves this machine.
            key = _first_line(self.data_dir / "admin.key")
        if key is None:
            raise InvalidArgument("no key: give --key or set HMI_API_KEY", field="key")
        return key


def _first_line(path: Path) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return lines[0].strip() if lines else None


_SHARED: dict[str, tuple[Any, object]] = {
    "address": (
        Annotated[str | None, typer.Option(envvar="HMI_ADDRESS", help="host:port of the gateway.")],
        None,
    ),
    "key": (Annotated[str | None, typer.Option(envvar="HMI_API_KEY", help="API key.")], None),
    "tenant": (
        Annotated[
            str | None, typer.Option(envvar="HMI_TENANT", help="Act for this tenant (admin).")
        ],
        None,
    ),
    "data_dir": (DataDir, DEFAULT_DATA_DIR),
    "as_json": (Json, False),
}


def command(
    app: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Session, P], None]], Callable[Concatenate[Session, P], None]]:
    """Declare a command whose first parameter is the session; its shared options are added."""

    def declare(
        function: Callable[Concatenate[Session, P], None],
    ) -> Callable[Concatenate[Session, P], None]:
        def run(**given: Any) -> None:
            session = Session(**{option: given.pop(option) for option in _SHARED})
            call: Callable[..., None] = function
            call(session, **given)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = [
            inspect.Parameter(
                option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
            for option, (annotation, default) in _SHARED.items()
        ]
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own
        ] + shared
        run.__doc__ = function.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in parameters}
        app.command(name)(run)
        return function

    return declare


def is_quiet(session: Session) -> bool:
    """Whether progress is left out: JSON was asked for, or nobody watches."""
    return session.as_json or not os.isatty(2)
