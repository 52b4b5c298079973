"""What makes a list of files a base: their names, and the digest that follows from them.

Knows the rule that gateway and knowledge store both hold a base to; does not know what files hold.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

from hmi.admin.v1 import resources_pb2
from services.common.errors import InvalidArgument

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


def base_digest(files: Iterable[resources_pb2.BaseFile]) -> str:
    """sha256 in hex of the sorted lines "SHA256  NAME\\n"."""
    lines = sorted(f"{file.sha256}  {file.name}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def check_file_name(field: str, value: str) -> str:
    """`value`, if it can name a base's file: 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-', and no
    '.' or '-' at first.

    Raises:
        InvalidArgument: naming `field`.
    """
    if not _FILE_NAME.fullmatch(value):
        raise InvalidArgument(field, "must be a plain file name")
    return value
