"""Names that users choose.

Knows the one rule for names; does not know what is named.
"""

from __future__ import annotations

import re

from services.common.errors import InvalidArgument

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
