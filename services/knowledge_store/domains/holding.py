"""Which blobs domains hold: tables now and before, corpora, updates under way, pinned manifests.

Knows who refers to what; deletes nothing.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection

from services.common.errors import NotFound
from services.knowledge_store.blobs import BlobDirectory
from services.knowledge_store.domains.manifests import blobs_of
from services.knowledge_store.domains.records import Table, get_all_work, get_updates
from services.knowledge_store.metadata.kinds import DOMAIN_TABLES, DOMAINS
from services.knowledge_store.metadata.transaction import Transaction

logger = logging.getLogger(__name__)


async def domain_blobs(transaction: Transaction) -> set[str]:
    """sha256 of every blob of a domain or an update, but what manifests alone name."""
    held: set[str] = set()
    for domain in await transaction.all(DOMAINS):
        held.add(domain.encoder_sha256)
    for data in (await transaction.records(DOMAIN_TABLES)).values():
        table = Table.model_validate_json(data)
        held |= table.rows.blobs | {corpus.sha256 for corpus in table.corpora}
        held |= table.previous.blobs if table.previous else set()
    for update in await get_updates(transaction):
        for node in update.nodes:
            held.update(segment.sha256 for segment in (*node.kept, *node.removals))
            held.add(node.keys_sha256)
    for work in await get_all_work(transaction):
        held.add(work.keys_sha256)
        held.update(segment.sha256 for segment in work.segments or ())
    return held


class Manifests:
    """What manifests name. They never change, so each is read once."""

    def __init__(self, blobs: BlobDirectory) -> None:
        self._blobs = blobs
        self._known: dict[str, set[str]] = {}

    async def blobs(self, manifests: Collection[str]) -> set[str]:
        """sha256 of every blob that the answers of any of the manifests need."""
        self._known = {name: self._known[name] for name in manifests if name in self._known}
        for name in manifests:
            if name not in self._known:
                try:
                    data = await self._blobs.read_all(name)
                except NotFound:
                    logger.error("a manifest is missing", extra={"sha256": name})
                    continue
                if hashlib.sha256(data).hexdigest() == name:
                    self._known[name] = blobs_of(data)
                else:
                    logger.error("a manifest is damaged", extra={"sha256": name})
        return set().union(*self._known.values())
