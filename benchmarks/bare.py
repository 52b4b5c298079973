"""Lets the executor's tensor code be imported where only torch and numpy are installed.

The error tree, the checkpoint reader, the adapters' expressions and metrics import packages that
the GPU benchmark never uses. Where a real package exists it is used; where it does not, a hollow
one takes its place, and anything that would really need it fails loudly, metrics excepted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HOLLOW = frozenset({"grpc", "google", "safetensors", "regex", "prometheus_client"})
_CALLED_AT_IMPORT = frozenset({"prometheus_client"})
"""Module bodies make metrics, which count nothing here: nobody reads them."""


class _Name:
    """Stands for anything that a module body may mention: attributes, items and hashing only."""

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name()

    def __getitem__(self, key: object) -> _Name:
        return _Name()


class _Called(_Name):
    """Also takes calls, and does nothing."""

    def __getattr__(self, name: str) -> _Called:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Called()

    def __call__(self, *_: object, **__: object) -> _Called:
        return self


class _HollowModule(ModuleType):
    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Called() if self.__name__ in _CALLED_AT_IMPORT else _Name()


class _HollowLoader(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _HollowModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class _LastResort(MetaPathFinder):
    """Asked after every real finder has failed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        top = fullname.partition(".")[0]
        if top not in HOLLOW:
            return None
        if fullname != top and not isinstance(sys.modules.get(top), _HollowModule):
            return None  # a module that a real package lacks stays missing
        return ModuleSpec(fullname, _HollowLoader(), is_package=True)


def allow() -> None:
    """From now on a missing package of `HOLLOW` is imported hollow."""
    sys.meta_path.append(_LastResort())
