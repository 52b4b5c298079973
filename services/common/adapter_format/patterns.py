"""Which modules an adapter's configuration means: PEFT's matching, with a limit on its time.

Follows `peft.tuners.tuners_utils.check_target_module_exists` and `peft.utils.other.get_pattern_key`
(PEFT 0.21). The expressions are the caller's, so they run on an engine that can be stopped.
"""

from __future__ import annotations

import time
from typing import Any

import regex

from services.common.adapter_format.options import Options
from services.common.errors import InvalidArgument

_MAX_PATTERN_CHARS = 1000
_MAX_PATTERNS = 1000
_BUDGET_S = 2.0


class Patterns:
    """Regular expressions with one time budget between them all."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + _BUDGET_S
        self._compiled: dict[str, regex.Pattern[str]] = {}

    def fullmatch(self, field: str, pattern: str, text: str) -> regex.Match[str] | None:
        """As `re.fullmatch`.

        Raises:
            InvalidArgument: `field` is no expression, too long, or too slow.
        """
        try:
            compiled = self._compiled.get(pattern)
            if compiled is None:
                if len(pattern) > _MAX_PATTERN_CHARS or len(self._compiled) >= _MAX_PATTERNS:
                    raise InvalidArgument(field, "expressions are too long or too many")
                compiled = self._compiled[pattern] = regex.compile(pattern)
            return compiled.fullmatch(text, timeout=max(self._deadline - time.monotonic(), 1e-3))
        except (regex.error, RecursionError, OverflowError) as error:
            raise InvalidArgument(field, "not a regular expression, or too deep a one") from error
        except TimeoutError as error:
            raise InvalidArgument(field, "matching takes too long") from error

    def value(
        self, options: Options, table_key: str, key: str, default: object, module: str
    ) -> tuple[str, Any]:
        """A module's value in a pattern table, or else the plain key's; with the field it is of."""
        for pattern, value in options.mapping(table_key).items():
            field = f"{options.field}.{table_key}[{pattern}]"
            if self.fullmatch(field, rf"(.*\.)?({pattern})", module):
                return field, value
        return f"{options.field}.{key}", options.get(key, default)


class Targets:
    """The modules that `target_modules` and the options beside it choose."""

    def __init__(self, options: Options, patterns: Patterns) -> None:
        self._options = options
        self._patterns = patterns
        self._layers = _layers(options)
        layers_pattern = options.get("layers_pattern")
        if isinstance(layers_pattern, str):
            layers_pattern = [layers_pattern] if layers_pattern else []
        self._layers_patterns = _names(options, "layers_pattern", layers_pattern or [])
        self._targets = _names(options, "target_modules", options.get("target_modules"))
        self._excluded = _names(options, "exclude_modules", options.get("exclude_modules") or [])

    def chooses(self, module: str) -> bool:
        """Whether a module, by its full name, is a target."""
        if self._matches("exclude_modules", self._excluded, module):
            return False
        if self._targets != "all-linear":
            if not self._matches("target_modules", self._targets, module):
                return False
            if isinstance(self._targets, str):
                return True
        return not self._layers or self._layer_of(module) in self._layers

    def _matches(self, key: str, names: list[str] | str, module: str) -> bool:
        if isinstance(names, str):
            field = f"{self._options.field}.{key}"
            return self._patterns.fullmatch(field, names, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def _layer_of(self, module: str) -> int | None:
        field = f"{self._options.field}.layers_pattern"
        stems = self._layers_patterns or [r"[^.]*"]
        for stem in stems:
            match = self._patterns.fullmatch(field, rf"(?:.*?\.)??{stem}\.(?P<idx>\d+)\..*", module)
            if match is not None:
                return int(match["idx"])
        return None


def _names(options: Options, key: str, value: object) -> list[str] | str:
    if isinstance(value, str):
        return "all-linear" if value.lower() == "all-linear" else value
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return value
    raise InvalidArgument(f"{options.field}.{key}", "must be a list of names or an expression")


def _layers(options: Options) -> frozenset[int]:
    value = options.get("layers_to_transform")
    layers = [value] if isinstance(value, int) else value or []
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise InvalidArgument(f"{options.field}.layers_to_transform", "must be layer numbers")
    return frozenset(layers)
