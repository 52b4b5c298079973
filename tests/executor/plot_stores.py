"""A real table store on small trees, asked as an engine asks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from services.common.errors import HmiError
from services.executor.plot import (
    HotTier,
    Retriever,
    RowCaches,
    RowSource,
    Table,
    TableBlobs,
    TableStore,
)
from tests.executor.plot_trees import (
    ROW_SHAPE,
    Blobs,
    FakeEncoder,
    Part,
    new_loader,
    sha,
    unigrams,
    write_version,
)

CPU = torch.device("cpu")
ENCODER = sha("encoder")
BIGRAM = 2 << 42 | 3 << 21


@contextmanager
def opened(blobs: TableBlobs, *, host_bytes: int = 1 << 20, name: str = "") -> Iterator[TableStore]:
    loader = new_loader(blobs, {ENCODER: FakeEncoder(3)})  # type: ignore[arg-type]
    store = TableStore(loader, host_bytes=host_bytes, tier=HotTier(1 << 12, CPU), name=name)
    try:
        yield store
    finally:
        store.close()


def wait_for(store: TableStore, version: str) -> Table:
    """Acquire as an engine does: ask, go on, ask again."""
    for _ in range(2000):
        table = store.acquire(version)
        if table is not None:
            return table
        time.sleep(0.002)
    raise AssertionError("the table never came")


def refusal(store: TableStore, version: str) -> HmiError:
    with pytest.raises(HmiError) as caught:
        wait_for(store, version)
    return caught.value


def root() -> tuple[str, list[Part]]:
    return (ENCODER, [unigrams()])


def siblings(blobs: Blobs, num: int) -> list[str]:
    """Versions of as many domains below one root."""
    return [
        write_version(blobs, [root(), (ENCODER, [Part(frozenset([BIGRAM]), 5 + i)])])
        for i in range(num)
    ]


def values(table: Table) -> torch.Tensor:
    caches = RowCaches(ROW_SHAPE, total_bytes=0, tenant_bytes=0)
    retriever = Retriever(ROW_SHAPE, CPU, caches)
    return retriever.retrieve([1, 2], [2], [RowSource(table, "acme")]).values
