"""The retrieve lane: tokens of a batch to the rows that stand for their lower layers.

Knows batches, tables and tenants; does not know layers, and waits for no device unless it must
compute what tables lack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from services.common import ngrams
from services.common.errors import Internal
from services.common.ngrams import IntArray
from services.common.sorted_keys import contains
from services.executor.plot.cache import RowCaches
from services.executor.plot.index import ABSENT
from services.executor.plot.lookup import Group, locate
from services.executor.plot.staging import Staging
from services.executor.plot.table import RowEncoder, Table


@dataclass(frozen=True, slots=True)
class RowSource:
    """What one row of a batch reads.

    Attributes:
        table: Its table version.
        tenant: Whose request it is: computed rows are cached for it alone.
    """

    table: Table
    tenant: str


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A batch's rows.

    Attributes:
        values: fp16 `[tokens, slots, hidden]` on the device.
        results: uint8 `[tokens]` on the device: what answered each token, see `Result`.
        num_missing: Tokens whose n-gram the tables lacked, under `compute`.
        num_computed: Distinct n-grams of theirs that no cache had either.
    """

    values: Tensor
    results: Tensor
    num_missing: int
    num_computed: int


class Retriever:
    """Retrieves for the batches of one split base. May be called from any thread.

    Args:
        row_shape: slots, hidden.
        device: Where the values go.
        caches: Computed rows.
        is_staged: As in `Staging`; for tests of the device's path on a CPU.
    """

    def __init__(
        self,
        row_shape: tuple[int, int],
        device: torch.device,
        caches: RowCaches,
        *,
        is_staged: bool | None = None,
    ) -> None:
        self._row_shape = row_shape
        self._device = device
        self._caches = caches
        self._is_staged = is_staged

    def retrieve(
        self, token_ids: ArrayLike, lengths: ArrayLike, sources: Sequence[RowSource]
    ) -> Retrieved:
        """Rows for the tokens of packed rows.

        Args:
            token_ids: int `[tokens]`.
            lengths: int `[rows]`.
            sources: One a row.

        Raises:
            Internal: A table under back-off has no unigram of a token, which loading rules out.
        """
        keys = ngrams.keys_of(token_ids, lengths)
        staging = Staging(len(keys), self._row_shape, self._device, is_staged=self._is_staged)
        by_source = list(_by_source(lengths, sources))
        on_device = [(source.table.on_device(), places) for source, places in by_source]
        on_host = [
            (source, places)
            for (source, places), (table, _) in zip(by_source, on_device, strict=True)
            if table is None
        ]
        located = locate(keys, [Group(source.table, places) for source, places in on_host])
        located.gather(staging)
        results = staging.to_device(located.found.results)
        for table, places in on_device:
            if table is not None:
                table.retrieve(keys[places], places, staging, results)
        misses: list[_Misses] = []
        for source, places in on_host:
            missing = places[located.found.nodes[places] == ABSENT]
            if len(missing):
                misses.append(_Misses.of(source, keys[missing], missing))
        num_computed = 0
        for encoder_sha256 in {miss.encoder_sha256 for miss in misses}:
            some = [miss for miss in misses if miss.encoder_sha256 == encoder_sha256]
            num_computed += self._compute(some, staging)
        num_missing = sum(len(miss.places) for miss in misses)
        return Retrieved(staging.values, results, num_missing, num_computed)

    def _compute(self, misses: list[_Misses], staging: Staging) -> int:
        """Rows that one encoder must supply, from the caches or by computing them once.

        Returns:
            How many distinct n-grams were computed.
        """
        wanted = [self._take_cached(miss, staging) for miss in misses]
        distinct = np.unique(np.concatenate(wanted))
        if not len(distinct):
            return 0
        rows = misses[0].encoder.rows(torch.from_numpy(distinct))
        host_rows = rows.cpu().numpy()
        on_device = rows.to(staging.device)
        for miss, keys in zip(misses, wanted, strict=True):
            is_wanted = contains(keys, miss.keys)
            numbers = np.searchsorted(distinct, miss.keys[is_wanted])
            staging.put_rows(on_device, numbers, miss.places[is_wanted])
            picked = host_rows[np.searchsorted(distinct, keys)]
            self._caches.put(miss.tenant, miss.encoder_sha256, keys, picked)
        return len(distinct)

    def _take_cached(self, miss: _Misses, staging: Staging) -> IntArray:
        """Bring cached rows to their tokens; returns the distinct keys that are not cached."""
        distinct, inverse = np.unique(miss.keys, return_inverse=True)
        hits, rows = self._caches.find(miss.tenant, miss.encoder_sha256, distinct)
        row_of = np.full(len(distinct), ABSENT)
        row_of[hits] = np.arange(len(hits))
        row_of_token = row_of[inverse]
        is_cached = row_of_token != ABSENT
        cached = torch.from_numpy(rows[row_of_token[is_cached]])
        staging.put_values(cached, miss.places[is_cached])
        missing: IntArray = distinct[row_of == ABSENT]
        return missing


@dataclass(frozen=True, slots=True)
class _Misses:
    """Tokens of one tenant that one encoder must answer: keys int64 `[n]`, places int64 `[n]`."""

    tenant: str
    encoder_sha256: str
    encoder: RowEncoder
    keys: IntArray
    places: IntArray

    @classmethod
    def of(cls, source: RowSource, keys: IntArray, places: IntArray) -> _Misses:
        table = source.table
        if not table.computes or table.encoder is None:
            raise Internal(f"table version {table.version} has no unigram of a token")
        encoder_sha256 = table.manifest.encoder_sha256
        return cls(source.tenant, encoder_sha256, table.encoder, keys, places)


def _by_source(
    lengths: ArrayLike, sources: Sequence[RowSource]
) -> Iterator[tuple[RowSource, IntArray]]:
    """Each distinct source with its tokens' places, int64 `[n]`.

    Under back-off nothing is cached, so that tenants of one table go together.
    """
    groups: dict[tuple[int, str], int] = {}
    firsts: list[RowSource] = []
    group_of_row = np.empty(len(sources), np.int64)
    for row, source in enumerate(sources):
        key = (id(source.table), source.tenant if source.table.computes else "")
        if key not in groups:
            groups[key] = len(firsts)
            firsts.append(source)
        group_of_row[row] = groups[key]
    group_of_token = np.repeat(group_of_row, np.asarray(lengths, np.int64))
    for group, source in enumerate(firsts):
        yield source, np.flatnonzero(group_of_token == group)
