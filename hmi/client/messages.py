"""Builds requests from what callers pass, says which field does not fit, and reads moments.

Knows protobuf's constructors; does not know any RPC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hmi.errors import InvalidArgument

Kind = TypeVar("Kind", bound=Message)


def to_datetime(message: Timestamp) -> datetime:
    """A moment of the wire, in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def build(kind: type[Kind], **fields: Any) -> Kind:
    """The message of these fields.

    Raises:
        InvalidArgument: A value that its field cannot hold: a number out of the type's range, or a
            text that is not Unicode; `field` names it.
    """
    try:
        return kind(**fields)
    except ValueError:
        for name, value in fields.items():
            _check(kind, name, value)
        raise


def _check(kind: type[Message], name: str, value: object) -> None:
    try:
        kind(**{name: value})
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{name}: is not valid Unicode", field=name) from error
    except ValueError as error:
        raise InvalidArgument(f"{name}: {value} is out of range", field=name) from error
