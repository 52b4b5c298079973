"""What a service's code imports, read from its source.

Follows imports through the project's own packages; does not run any of them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path

FIRST_PARTY = ("services", "hmi")

# Packages that several distributions share.
_NAMESPACES = {"google.protobuf": "protobuf", "google.rpc": "googleapis-common-protos"}


def module_path(root: Path, module: str) -> Path | None:
    """The file of a module of the project; None if it has none (a name inside a module)."""
    base = root.joinpath(*module.split("."))
    for candidate in (base / "__init__.py", base.with_suffix(".py")):
        if candidate.is_file():
            return candidate
    return None


def imported_modules(path: Path, package: str, *, is_lazy_included: bool = True) -> Iterator[str]:
    """Absolute names of what a file imports; of `from a import b` both `a` and `a.b`.

    Args:
        path: The source file.
        package: The package it belongs to, for relative imports.
        is_lazy_included: Whether imports inside functions count.

    What stands under `if TYPE_CHECKING:` never counts.
    """
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"), str(path))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not is_lazy_included:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from _from_import(node, package)
        pending.extend(ast.iter_child_nodes(node))


def _from_import(node: ast.ImportFrom, package: str) -> Iterator[str]:
    parent = node.module or ""
    if node.level:
        kept = package.split(".")[: len(package.split(".")) - node.level + 1]
        parent = ".".join([*kept, parent] if parent else kept)
    yield parent
    yield from (f"{parent}.{alias.name}" for alias in node.names)


def third_party(root: Path, entry: str) -> dict[str, str]:
    """Distributions that a module needs to run, each with a module that imports it.

    Lazy imports count in the services, whose every path must work in an image, but not in `hmi`,
    of which a service uses nothing but the stubs.

    Raises:
        SyntaxError: A file on the way is not Python.
    """
    needed: dict[str, str] = {}
    seen = {entry}
    pending = [entry]
    while pending:
        importer = pending.pop()
        path = module_path(root, importer)
        if path is None:
            continue
        package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
        is_service = importer.startswith("services")
        names = {importer.rpartition(".")[0] or importer}
        names.update(imported_modules(path, package, is_lazy_included=is_service))
        for name in sorted(names - seen):
            seen.add(name)
            top = name.partition(".")[0]
            if top in FIRST_PARTY:
                pending.append(name)
            elif top not in sys.stdlib_module_names:
                needed.setdefault(distribution(name), importer)
    return needed


def distribution(module: str) -> str:
    """The name under which pip knows an installed module, normalised."""
    for namespace, name in _NAMESPACES.items():
        if module == namespace or module.startswith(f"{namespace}."):
            return name
    top = module.partition(".")[0]
    return normalised(_distributions().get(top, [top])[0])


def normalised(name: str) -> str:
    """A distribution's name in the form that compares equal (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def _distributions() -> dict[str, list[str]]:
    return {top: list(names) for top, names in metadata.packages_distributions().items()}
