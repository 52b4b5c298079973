"""HMI's face to its users: `hmi.Client`, `hmi.AsyncClient`, the `hmi` command and the local stack.

The services import the generated stubs below this package, so nothing is loaded before it is asked
for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hmi.client import AsyncClient, Client
    from hmi.errors import HmiError

__all__ = ["AsyncClient", "Client", "HmiError", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in {"AsyncClient", "Client"}:
        import hmi.client

        return getattr(hmi.client, name)
    if name == "HmiError":
        import hmi.errors

        return hmi.errors.HmiError
    raise AttributeError(f"module 'hmi' has no attribute {name!r}")
