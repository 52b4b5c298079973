"""Builds requests from what callers pass, says which field does not fit, and reads moments.

Knows protobuf's constructors; does not know any RPC.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Any, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from hmi.errors import InvalidArgument

Kind = TypeVar("Kind", bound=Message)
AnyEnum = TypeVar("AnyEnum", bound=Enum)


def to_datetime(message: Timestamp) -> datetime:
    """A moment of the wire, in UTC."""
    return message.ToDatetime(tzinfo=UTC)


def enum_from_pb(kind: type[AnyEnum], descriptor: EnumDescriptor, value: int) -> AnyEnum:
    """The member for a number of the wire; `UNSPECIFIED` for one that only a newer server knows.

    Args:
        descriptor: Of the proto enum; its names are those of `kind` after the prefix that buf asks
            for, which the name of its zero tells.
    """
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    known = descriptor.values_by_number.get(value)
    name = known.name.removeprefix(prefix) if known else "UNSPECIFIED"
    return kind[name] if name in kind.__members__ else kind["UNSPECIFIED"]


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
