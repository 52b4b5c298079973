"""Writes the tables of settings and metrics in docs/operations.md from the services' own code.

Run as `make docs`. Knows no setting and no metric: what is said of one stands where it is declared.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from deploy.semantics import settings_class
from services.common.config import ServiceSettings

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/operations.md"
SERVICES = ("gateway", "knowledge_store", "executor")


def settings() -> str:
    """The tables of settings: every service's, then each service's own."""
    common = ServiceSettings.model_fields
    lines = ["**Every service**", "", *_table(common)]
    for service in SERVICES:
        fields = settings_class(service).model_fields
        lines += ["", f"**`services.{service}`**", ""]
        lines += _table({name: fields[name] for name in fields if name not in common})
    return "\n".join(lines)


def _table(fields: dict[str, FieldInfo]) -> Iterator[str]:
    yield "| variable | default | meaning |"
    yield "|---|---|---|"
    for name, field in fields.items():
        description = " ".join((field.description or "").split()).replace("|", "\\|")
        yield f"| `HMI_{name.upper()}` | {_default(field)} | {description} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "by the machine"
    value = field.default
    text = str(value.get_secret_value() if isinstance(value, SecretStr) else value)
    return f"`{text}`" if text and value is not None else "–"


def metrics() -> str:
    """The table of metrics, read from the source: importing it would take torch."""
    rows = []
    for path in sorted((ROOT / "services").rglob("*.py")):
        where = ".".join(path.relative_to(ROOT).parts[1:2])
        rows += [f"| {row} | {where} |" for row in _declared(path)]
    return "\n".join(
        ["| metric | kind | labels | meaning | where |", "|---|---|---|---|---|", *rows]
    )


def _declared(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or len(node.args) < 2:
            continue
        kind = ast.unparse(node.func).rpartition(".")[2]
        if kind not in {"Counter", "Gauge", "Histogram"}:
            continue
        name, meaning = (ast.literal_eval(argument) for argument in node.args[:2])
        labels: tuple[str, ...] = tuple(ast.literal_eval(node.args[2])) if node.args[2:] else ()
        for keyword in node.keywords:
            if keyword.arg == "labelnames":
                labels = tuple(ast.literal_eval(keyword.value))
        label_names = ", ".join(f"`{label}`" for label in labels) or "–"
        yield f"`{name}` | {kind.lower()} | {label_names} | {meaning}"


SECTIONS: dict[str, Callable[[], str]] = {"settings": settings, "metrics": metrics}


def updated(page: str) -> str:
    """The page with its generated sections as they should be.

    Raises:
        ValueError: The page lacks a section's markers.
    """
    for name, render in SECTIONS.items():
        begin, end = f"<!-- {name}: written by `make docs` -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"{PAGE.name} lacks the lines {begin.strip()} and {end.strip()}")
        page = f"{before}{begin}\n{render()}\n\n{end}{after}"
    return page


def main() -> int:
    """Rewrite the page."""
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
