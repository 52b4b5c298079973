"""Names that users choose.

Knows the one rule for names; does not know what is named.
"""

from __future__ import annotations

import re

from services.common.errors import InvalidArgument

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
MAX_PATH_NAMES = 8
MAX_PATH_CHARS = 255


def is_name(value: str) -> bool:
    """Whether `value` keeps the rule for names: what does not can be the name of nothing."""
    return _NAME.fullmatch(value) is not None


def check_name(field: str, value: str) -> str:
    """`value`, if it is a name: 1 to 63 of a-z, 0-9 and '-', starting with a letter.

    Raises:
        InvalidArgument: naming `field`.
    """
    if not is_name(value):
        raise InvalidArgument(field, "must be 1 to 63 of a-z, 0-9 and '-', starting with a letter")
    return value


def check_sha256(field: str, value: str) -> str:
    """`value`, if it is a sha256 in lower-case hex.

    Raises:
        InvalidArgument: naming `field`.
    """
    if not _SHA256.fullmatch(value):
        raise InvalidArgument(field, "must be a sha256: 64 lower-case hex digits")
    return value


def check_path(field: str, value: str) -> str:
    """`value`, if it is a domain's path: 1 to 8 names joined by '/', at most 255 characters in all.

    Raises:
        InvalidArgument: naming `field`.
    """
    names = value.split("/")
    if len(value) > MAX_PATH_CHARS or len(names) > MAX_PATH_NAMES or not all(map(is_name, names)):
        raise InvalidArgument(
            field,
            f"must be 1 to {MAX_PATH_NAMES} names joined by '/', {MAX_PATH_CHARS} characters at "
            "most; a name is 1 to 63 of a-z, 0-9 and '-', starting with a letter",
        )
    return value


def check_own_path(field: str, path: str, tenant: str) -> str:
    """`path`, if a tenant may have a domain there right below one that is not its own: its last
    name is the tenant's. So no tenant's domain is in another's way, and nobody can tell from a
    refusal what others have.

    Raises:
        InvalidArgument: naming `field`.
    """
    if path.rpartition("/")[2] != tenant:
        own = f"{parent_path(path)}/{tenant}".lstrip("/")
        raise InvalidArgument(
            field,
            f"tenant {tenant}'s own domain here is '{own}', and its others are below that; "
            "other paths are shared domains, which an admin makes without naming a tenant",
        )
    return path


def domain_label(path: str) -> str:
    """A node as messages name it; the root's path is empty."""
    return f"domain '{path}'" if path else "the root domain"


def parent_path(path: str) -> str:
    """The path of a domain's parent; the root's is empty, and so is its children's parent."""
    return path.rpartition("/")[0]
