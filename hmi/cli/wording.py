"""Errors in the words of a command line: its options and arguments in place of a request's fields.

Knows what fields of requests and of local runs are called; does not know any command. An error's
`field` stays the request's path: only what a person reads changes.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from hmi.errors import HmiError, InvalidArgument

if TYPE_CHECKING:
    from services.common.errors import HmiError as ServiceError

_WORDS = {
    "data": "DATA",
    "directory": "DIR",
    "header.base": "--base",
    "header.domain": "--domain",
    "header.follow": "--follow",
    "header.model": "--name",
    "header.name": "NAME",
    "path": "PATH",
    "tenant.name": "NAME",
    "tenant.weight": "--weight",
    "texts": "TEXT",
}
"""Fields whose name is not that of their option."""

_OPTIONS = frozenset(
    {
        "adapter", "alpha", "base", "base_dir", "batch_size", "corpus", "device", "domain",
        "epochs", "held_out", "labels", "learning_rate", "local_encoder", "max_models",
        "max_queued_items", "max_tokens", "normalize", "out", "pooling", "rank",
        "requests_per_second", "split", "task", "tokens_per_second",
    }
)  # fmt: skip
"""Fields that are their option's name, with `_` for `-`."""

_OF_A_DOMAIN = {
    "base": "--base",
    "path": "PATH",
    "miss_policy": "--policy",
    "alpha": "--alpha",
    "byte_budget": "--budget",
    "half_life_tokens": "--half-life",
}
_INPUT = re.compile(r"inputs\[(\d+)\]\.(text|text_pair)")


def on_a_command_line(error: HmiError) -> str:
    """The error's message, its field named as the one who typed the command knows it."""
    field = error.field
    return error.message if field is None else _renamed(error.message, field, _word(field))


def of_a_later_piece(error: InvalidArgument, num_before: int) -> InvalidArgument:
    """The error of a request that held the texts after the first `num_before`, counted from all."""
    given = re.match(r"inputs\[(\d+)\]", error.field or "")
    if given is None or error.field is None:
        return error
    field = f"inputs[{int(given[1]) + num_before}]{error.field[given.end() :]}"
    message = _renamed(error.message, error.field, field)
    return InvalidArgument(message, field=field, reason=error.reason)


def of_a_local_run(error: ServiceError) -> HmiError:
    """The error of work done on this machine, as this package's."""
    field = getattr(error, "field", None)
    if field is None:
        return HmiError(error.message, reason=error.reason)
    return InvalidArgument(error.message, field=field, reason=error.reason)


def _renamed(message: str, field: str, name: str) -> str:
    """The message with another name for the field, if it begins with the field."""
    return name + message.removeprefix(field) if message.startswith(f"{field}: ") else message


def _word(field: str) -> str:
    """What a command line calls a field; the field itself where that is not known."""
    if (word := _WORDS.get(field)) is not None:
        return word
    if given := _INPUT.fullmatch(field):
        number = int(given[1]) + 1
        return f"text {number}" if given[2] == "text" else f"--pair {number}"
    for prefix in ("header.domain.", "domain."):
        if field.startswith(prefix):
            return _OF_A_DOMAIN.get(field.removeprefix(prefix), field)
    name = field.removeprefix("tenant.quota.")
    return f"--{name.replace('_', '-')}" if name in _OPTIONS else field
