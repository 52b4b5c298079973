"""Lets the executor's tensor code be imported where only torch and numpy are installed.

The error tree and the checkpoint reader import gRPC and safetensors, which the GPU benchmark never
calls. Where a real package exists it is used; where it does not, a hollow one takes its place, and
anything that would really need it fails loudly.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

HOLLOW = frozenset({"grpc", "google", "safetensors"})


class _Name:
    """Stands for anything that a module body may mention: attributes, items and hashing only."""

    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name()

    def __getitem__(self, key: object) -> _Name:
        return _Name()


class _HollowModule(ModuleType):
    def __getattr__(self, name: str) -> _Name:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Name()


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
        if fullname.partition(".")[0] not in HOLLOW:
            return None
        return ModuleSpec(fullname, _HollowLoader(), is_package=True)


def allow() -> None:
    """From now on a missing package of `HOLLOW` is imported hollow."""
    sys.meta_path.append(_LastResort())
