"""What executors counted, checked and added to the frequencies.

Knows what a message may hold and whose counts are kept; does not know how they are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as pb
from services.common.errors import InvalidArgument
from services.common.ids import check_name, check_path
from services.common.ngrams import is_key
from services.knowledge_store import metrics
from services.knowledge_store.domains.key_blobs import in_vocabulary
from services.knowledge_store.domains.options import DomainOptions
from services.knowledge_store.domains.records import Table, get_table
from services.knowledge_store.domains.tables import born
from services.knowledge_store.frequency import Frequencies, Observation, Stream
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import (
    DOMAIN_TABLES,
    DOMAINS,
    TENANTS,
    domain_name,
)
from services.knowledge_store.metadata.transaction import Transaction

_MAX_ID_CHARACTERS = 128
_MAX_STREAMS = 10_000
_MAX_KEYS = 1 << 20
# An n-gram comes at most once a token.
_MAX_TOKENS = 1 << 40


class Observing:
    """Takes messages of counts."""

    def __init__(
        self, database: Database, frequencies: Frequencies, options: DomainOptions
    ) -> None:
        self._database = database
        self._frequencies = frequencies
        self._options = options

    async def load(self) -> None:
        """Hold the counts as they were written down against the domains there are: those of
        domains gone since are forgotten, and no clock is behind its corpora's."""

        async def read(transaction: Transaction) -> tuple[list[rpb.Domain], dict[str, bytes]]:
            return await transaction.all(DOMAINS), await transaction.records(DOMAIN_TABLES)

        nodes, tables = await self._database.read(read)
        for node in nodes:
            data = tables.get(domain_name(node.base, node.path))
            corpora = Table.model_validate_json(data).corpora if data is not None else ()
            clock = max((corpus.clock for corpus in corpora), default=0.0)
            self._frequencies.renew(node.base, node.path, born(node), clock)
        there = {(node.base, node.path) for node in nodes}
        for base, path in self._frequencies.domains() - there:
            self._frequencies.forget(base, path)

    async def tidy(self) -> None:
        """Forget counts of domains and tenants that are gone, or that no longer share."""
        frequencies = self._frequencies
        domains, streams = await asyncio.to_thread(
            lambda: (frequencies.domains(), frequencies.streams())
        )

        async def read(transaction: Transaction) -> tuple[set[tuple[str, str]], set[Stream]]:
            await transaction.load(DOMAINS, {domain_name(*domain) for domain in domains})
            await transaction.load(TENANTS, {stream.tenant for stream in streams})
            owners = {}
            for domain in domains:
                node = await transaction.get(DOMAINS, domain_name(*domain))
                if node is not None:
                    owners[domain] = node.tenant
            kept = set()
            for stream in streams:
                tenant = await transaction.get(TENANTS, stream.tenant)
                owner = owners.get((stream.base, stream.path))
                if tenant and (tenant.shares_counts or tenant.name == owner):
                    kept.add(stream)
            return set(owners), kept

        if not domains:
            return
        there, kept = await self._database.read(read)

        def forget() -> None:
            for base, path in domains - there:
                frequencies.forget(base, path)
            frequencies.drop(set(streams) - kept)

        await asyncio.to_thread(forget)

    async def observe(self, request: pb.ObserveRequest) -> None:
        """Add a message; one seen before changes nothing. What is of a domain or tenant that is
        gone, or that the tenant may not see, is left out.

        Raises:
            InvalidArgument: A field.
        """
        if not 0 < len(request.executor_id) <= _MAX_ID_CHARACTERS:
            raise InvalidArgument("executor_id", f"1 to {_MAX_ID_CHARACTERS} characters")
        if not request.sequence:
            raise InvalidArgument("sequence", "counts from 1")
        if len(request.counts) > _MAX_STREAMS:
            raise InvalidArgument("counts", f"at most {_MAX_STREAMS}, not {len(request.counts)}")
        if sum(len(counts.keys) for counts in request.counts) > _MAX_KEYS:
            raise InvalidArgument("counts", f"at most {_MAX_KEYS} keys a message")
        for position, counts in enumerate(request.counts):
            _check(f"counts[{position}]", counts)
        owners = await self._database.read(lambda t: _owners(t, request.counts))

        def observe() -> bool:
            known = zip(request.counts, owners, strict=True)
            observations = [self._observation(counts, of) for counts, of in known if of is not None]
            return self._frequencies.observe(
                request.executor_id, request.epoch, request.sequence, observations
            )

        if await asyncio.to_thread(observe):
            metrics.domain_observations_total.inc()

    def _observation(self, counts: pb.TenantCounts, owner: _Owner) -> Observation:
        node, tenant = owner.node, owner.tenant
        keys = np.array(counts.keys, np.uint64).astype(np.int64)
        numbers = np.minimum(np.array(counts.counts, np.float64), counts.num_tokens)
        # A key that the base has no token for could never be materialised.
        is_real = is_key(keys) & (numbers > 0)
        is_real[is_real] = in_vocabulary(keys[is_real], owner.vocab_size)
        seen = counts.lookups
        lookups = (
            seen.num_tokens, seen.num_trigram, seen.num_bigram, seen.num_unigram,
            seen.num_computed,
        )  # fmt: skip
        return Observation(
            stream=Stream(counts.base, counts.path, counts.tenant),
            keys=keys[is_real],
            counts=numbers[is_real],
            num_tokens=counts.num_tokens,
            half_life_tokens=self._options.half_life_of(node),
            lookups=lookups,
            # What may shape no table is not kept either.
            is_counted=node.tenant == tenant.name or tenant.shares_counts,
            born=born(node),
        )


@dataclass(frozen=True)
class _Owner:
    """Whose counts some are: the domain, the tenant, and how many tokens the base has."""

    node: rpb.Domain
    tenant: rpb.Tenant
    vocab_size: int


async def _owners(
    transaction: Transaction, wanted: Sequence[pb.TenantCounts]
) -> list[_Owner | None]:
    """Of each of the counts; None where domain or tenant is gone, or the tenant may not see it."""
    await transaction.load(DOMAINS, {domain_name(c.base, c.path) for c in wanted})
    await transaction.load(TENANTS, {counts.tenant for counts in wanted})
    bases = {counts.base for counts in wanted}
    roots = {base: await get_table(transaction, base, "") for base in bases}
    owners: list[_Owner | None] = []
    for counts in wanted:
        node = await transaction.get(DOMAINS, domain_name(counts.base, counts.path))
        tenant = await transaction.get(TENANTS, counts.tenant)
        if node is None or tenant is None or node.tenant not in ("", tenant.name):
            owners.append(None)
        else:
            owners.append(_Owner(node, tenant, roots[counts.base].vocab_size))
    return owners


def _check(field: str, counts: pb.TenantCounts) -> None:
    check_name(f"{field}.base", counts.base)
    check_name(f"{field}.tenant", counts.tenant)
    if counts.path:
        check_path(f"{field}.path", counts.path)
    if len(counts.keys) != len(counts.counts):
        raise InvalidArgument(f"{field}.counts", f"{len(counts.keys)} keys need as many counts")
    if counts.num_tokens > _MAX_TOKENS:
        raise InvalidArgument(f"{field}.num_tokens", f"must be at most {_MAX_TOKENS}")
