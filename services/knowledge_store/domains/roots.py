"""Roots: what a split base brings along, and the first table of its tree.

Knows the files of a split base; does not know how bases are registered.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.base_config import BaseConfig
from services.common.bases import base_digest
from services.common.errors import FailedPrecondition, InvalidArgument, NotFound
from services.common.ids import check_sha256
from services.common.sorted_keys import union
from services.knowledge_store.blobs import BlobDirectory
from services.knowledge_store.domains.drafts import Draft
from services.knowledge_store.domains.key_blobs import NUM_SLOTS, KeyBlobs, row_bytes, unigrams
from services.knowledge_store.domains.options import DEFAULT_ALPHA, DomainOptions
from services.knowledge_store.domains.planner import Planner
from services.knowledge_store.domains.records import Corpus, Table
from services.knowledge_store.domains.tables import Tree, born, delete_node
from services.knowledge_store.metadata.tenants import timestamp
from services.knowledge_store.metadata.transaction import Transaction

ENCODER_FILE = "local_encoder.safetensors"
KEYS_FILE = "root_keys.safetensors"


@dataclass(frozen=True)
class RootDraft:
    """A root that can be added with its base."""

    node: rpb.Domain
    table: Table
    draft: Draft


class Roots:
    """Makes roots.

    Args:
        on_created: Called with base, path and when it was born, in nanoseconds, as a root is made.
    """

    def __init__(
        self,
        planner: Planner,
        key_blobs: KeyBlobs,
        blobs: BlobDirectory,
        options: DomainOptions,
        *,
        on_created: Callable[[str, str, int], None],
    ) -> None:
        self._planner = planner
        self._key_blobs = key_blobs
        self._blobs = blobs
        self._options = options
        self._on_created = on_created

    async def draft(self, base: rpb.Base) -> RootDraft:
        """The root of a new split base and its first table: every token, and the keys its encoder
        came with, within the deployment's budget or as many bytes as they take.

        Raises:
            InvalidArgument: A field of the split, or a file that is not what its name says.
            FailedPrecondition: A blob is missing.
            ResourceExhausted: The disk is full.
        """
        _check_split(base)
        files = {file.name: file.sha256 for file in base.files}
        vocab_size = await self._vocab_size(files["config.json"])
        counts = await self._key_blobs.read_counts(
            f"base.files[{KEYS_FILE}]", files[KEYS_FILE], base.tokenizer_digest, vocab_size
        )
        rows = union(unigrams(vocab_size), counts.keys)
        budget = max(self._options.byte_budget, len(rows) * row_bytes(base))
        node = rpb.Domain(
            base=base.name, encoder_sha256=base.split.encoder_sha256, alpha=DEFAULT_ALPHA,
            miss_policy=rpb.MISS_POLICY_BACKOFF, byte_budget=budget, is_updating=True,
            create_time=timestamp(),
        )  # fmt: skip
        corpus = Corpus(sha256=files[KEYS_FILE], num_tokens=counts.num_tokens, is_whole=False)
        table = Table(vocab_size=vocab_size, corpora=(corpus,))
        return RootDraft(node, table, await self._planner.root_draft(base, node, rows))

    async def add(self, transaction: Transaction, base: rpb.Base, root: RootDraft) -> None:
        """Add the root of a base that this transaction has added.

        Raises:
            FailedPrecondition: A blob is missing.
        """
        if not await self._planner.start(transaction, root.draft):
            raise FailedPrecondition("planning took too long: retry", reason="BLOB_MISSING")
        Tree(transaction, base).put(root.node, root.table)
        await asyncio.to_thread(self._on_created, base.name, "", born(root.node))

    async def delete(self, transaction: Transaction, base_name: str) -> None:
        """Delete a split base's nodes, leaves first."""
        tree = await Tree.load(transaction, base_name)
        for node in reversed(tree.nodes.values()):
            await delete_node(transaction, node)

    async def _vocab_size(self, sha256: str) -> int:
        try:
            config = json.loads(await self._blobs.read_all(sha256))
        except NotFound:
            raise FailedPrecondition(
                f"there is no blob {sha256}: write it first", reason="BLOB_MISSING"
            ) from None
        except (ValueError, RecursionError) as error:
            raise InvalidArgument("base.files[config.json]", "is not JSON") from error
        if not isinstance(config, dict):
            raise InvalidArgument("base.files[config.json]", "is not a JSON object")
        return BaseConfig.from_hf(config).vocab_size


def _check_split(base: rpb.Base) -> None:
    files = {file.name: file.sha256 for file in base.files}
    for name in ("config.json", ENCODER_FILE, KEYS_FILE):
        if name not in files:
            raise InvalidArgument("base.files", f"a split base has a file {name}")
    split = base.split
    if split.form not in NUM_SLOTS:
        raise InvalidArgument("base.split.form", "must be centre or sum")
    if split.encoder_sha256 != files[ENCODER_FILE]:
        raise InvalidArgument("base.split.encoder_sha256", f"is not that of {ENCODER_FILE}")
    unsplit = [file for file in base.files if file.name not in (ENCODER_FILE, KEYS_FILE)]
    if split.unsplit_digest != base_digest(unsplit):
        raise InvalidArgument(
            "base.split.unsplit_digest", "is not the digest of the files that are not the split's"
        )
    check_sha256("base.tokenizer_digest", base.tokenizer_digest)
    if not base.hidden_size:
        raise InvalidArgument("base.hidden_size", "must be more than 0")
    if not 1 <= split.layer < base.num_layers:
        raise InvalidArgument("base.split.layer", f"must be 1 to {base.num_layers - 1}")
