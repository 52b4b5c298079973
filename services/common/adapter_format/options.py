"""Checks a configuration key by key, so that no option is ever ignored.

Knows how to refuse; the formats' own modules say which keys they use, which are harmless, and
which value of an unsupported key means that it is off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from services.common.errors import InvalidArgument

UNSUPPORTED = "UNSUPPORTED_OPTION"


class Options:
    """One configuration object.

    Args:
        field: Its path in error messages, such as `adapter_config`.
        values: Its keys and values.
    """

    def __init__(self, field: str, values: Mapping[str, Any]) -> None:
        self.field = field
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def refuse(self, key: str, message: str) -> InvalidArgument:
        """The error that names a key."""
        return InvalidArgument(f"{self.field}.{key}", message, reason=UNSUPPORTED)

    def check_known(
        self, used: Collection[str], harmless: Collection[str], off: Mapping[str, tuple[Any, ...]]
    ) -> None:
        """Refuse keys nobody knows, and unsupported ones that are on.

        Raises:
            InvalidArgument: Names the first such key.
        """
        for key, value in self._values.items():
            if key in off:
                if not any(value is calm or value == calm for calm in off[key]):
                    raise self.refuse(key, f"{value!r} is not supported")
            elif key not in used and key not in harmless:
                raise self.refuse(key, "is not known, so it cannot be ignored")

    def get(self, key: str, default: Any = None) -> Any:
        """The value, as it stands."""
        return self._values.get(key, default)

    def flag(self, key: str, default: bool) -> bool:
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            raise InvalidArgument(f"{self.field}.{key}", "must be true or false")
        return value

    def count(self, key: str, default: int, *, low: int = 1) -> int:
        value = self._values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < low:
            raise InvalidArgument(f"{self.field}.{key}", f"must be an integer of at least {low}")
        return value

    def number(self, key: str, default: float) -> float:
        return as_number(f"{self.field}.{key}", self._values.get(key, default))

    def text(self, key: str, default: str, choices: Collection[str]) -> str:
        value = self._values.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise self.refuse(key, f"must be one of {', '.join(sorted(choices))}")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings; null and absence are the empty list."""
        value = self._values.get(key) or []
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidArgument(f"{self.field}.{key}", "must be a list of strings")
        return value

    def mapping(self, key: str) -> dict[str, Any]:
        """An object; null and absence are the empty one."""
        value = self._values.get(key) or {}
        if not isinstance(value, dict):
            raise InvalidArgument(f"{self.field}.{key}", "must be an object")
        return value


def as_number(field: str, value: object) -> float:
    """A finite number.

    Raises:
        InvalidArgument: `field` is none.
    """
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e9:
        raise InvalidArgument(field, "must be a number of at most 1e9")
    return float(value)
