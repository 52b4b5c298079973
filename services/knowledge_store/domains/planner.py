"""Plans of updates: what there is, what was counted, what should be.

Knows where a plan's facts come from; the plan itself is `tree`'s. Planning takes seconds, so it
happens beside the transactions: one reads, another starts what was planned, if what it was planned
from still holds.
"""

from __future__ import annotations

import asyncio
import logging

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.errors import Aborted, FailedPrecondition, InvalidArgument, NotFound
from services.common.ids import domain_label
from services.common.ngram_counts import NgramCounts
from services.common.sorted_keys import NONE, IntArray
from services.knowledge_store.domains.drafts import Draft, Drafting, Goal
from services.knowledge_store.domains.key_blobs import KeyBlobs, unigrams
from services.knowledge_store.domains.manifests import path_to
from services.knowledge_store.domains.options import DEFAULT_ALPHA, DomainOptions
from services.knowledge_store.domains.planning import Facts, check_idle, left_of
from services.knowledge_store.domains.records import Corpus, Table, get_updates, put_update
from services.knowledge_store.domains.sources import (
    CountsInTurn,
    OwnCounts,
    corpus_source,
    node_counts,
    traffic_source,
)
from services.knowledge_store.domains.tables import Tree
from services.knowledge_store.frequency import Frequencies
from services.knowledge_store.metadata.bases import BlobSizes
from services.knowledge_store.metadata.database import Database
from services.knowledge_store.metadata.kinds import TENANTS
from services.knowledge_store.metadata.transaction import Transaction
from services.knowledge_store.tree import Node, NodePlan, OrderChange, plan_tree

logger = logging.getLogger(__name__)

_TRIES = 3


class Planner:
    """Plans and starts updates."""

    def __init__(
        self,
        database: Database,
        key_blobs: KeyBlobs,
        blob_sizes: BlobSizes,
        frequencies: Frequencies,
        options: DomainOptions,
    ) -> None:
        self._database = database
        self._key_blobs = key_blobs
        self._blob_sizes = blob_sizes
        self._frequencies = frequencies
        self._options = options
        self._drafting = Drafting(key_blobs, options)

    async def root_draft(self, base: rpb.Base, root: rpb.Domain, rows: IntArray) -> Draft:
        """The first table of a new root.

        Raises:
            ResourceExhausted: The disk is full.
        """
        goal = Goal(root, Table().rows, NONE, rows)
        draft = await self._drafting.draft(base, [goal], is_first=True)
        if draft is None:
            raise FailedPrecondition("a vocabulary has one token at least", reason="NO_ROWS")
        return draft

    async def first_draft(self, base_name: str, node: rpb.Domain, corpus: Corpus) -> Draft | None:
        """The first table of a new node, from its corpus; None if its ancestors hold all of it.

        Raises:
            NotFound, FailedPrecondition: As `Tree.load`.
            InvalidArgument: The counts are not of this base.
            ResourceExhausted: The disk is full.
        """
        facts = await self._facts(base_name)
        counts = await self._read_counts(facts, corpus)
        above = path_to(node.path)[:-1]
        missing = [path for path in above if path not in facts.nodes]
        if missing:
            raise NotFound(f"there is no domain {missing[0]!r}", reason="DOMAIN_NOT_FOUND")
        half_life = self._options.half_life_of(node)
        source = await asyncio.to_thread(corpus_source, corpus, counts, 0.0, half_life)
        own = OwnCounts(node, (source,), ())
        nodes = [await self._node(facts, facts.nodes[path], can_change=False) for path in above]
        nodes.append(self._new_node(facts.base, node))
        m = self._options.rules.min_tenants
        plans = await asyncio.to_thread(
            lambda: plan_tree(
                nodes, {node.path: node_counts(node, [own], (), m)}, self._options.rules
            )
        )
        goal = Goal(node, Table().rows, NONE, plans[node.path].rows)
        return await self._drafting.draft(facts.base, [goal], is_first=True)

    async def update(
        self, base_name: str, path: str, *, is_dry_run: bool, is_scheduled: bool
    ) -> tuple[str, list[OrderChange]]:
        """Plan a tree's update, or of a node and those below it, and start it unless it is a dry
        run; returns its id, empty if nothing is started, and what changes. Nodes without a table
        yet are left out, with those below them.

        Raises:
            NotFound: Base or path.
            FailedPrecondition: The base is not split, the node has no table, or an update of nodes
                of these is being worked on.
            Aborted: The tree kept changing meanwhile.
            ResourceExhausted: The disk is full.
        """
        for _ in range(_TRIES):
            facts = await self._facts(base_name)
            if path not in facts.nodes:
                raise NotFound(f"there is no domain {path!r}", reason="DOMAIN_NOT_FOUND")
            scope = facts.scope(path, with_frozen=not is_scheduled)
            if not is_dry_run:
                check_idle(facts.updates, scope | {path})
                if not facts.is_ready(path):
                    raise FailedPrecondition(
                        f"{domain_label(path)} has no table to update: delete it and create it "
                        "again",
                        reason="NO_TABLE",
                    )
            keys_now, plans = await self._plan(facts, scope)
            changes = [change for plan in plans.values() for change in plan.changes]
            if is_dry_run:
                return "", changes
            goals = [
                Goal(facts.nodes[at], facts.tables[at].rows, keys_now[at], plan.rows)
                for at, plan in plans.items()
            ]
            draft = await self._drafting.draft(facts.base, goals, is_first=False)
            if draft is None:
                return "", changes
            if await self._start(facts, draft):
                return draft.update.update_id, changes
        raise Aborted(f"the domains of base {base_name} keep changing: update again")

    async def repair(self, base_name: str, path: str, damaged: str) -> str:
        """Start an update that writes a node's rows of a damaged segment's order anew; returns its
        id, empty if the tree changed meanwhile.

        Raises:
            NotFound: Base or path.
            FailedPrecondition: An update of the node is being worked on.
            ResourceExhausted: The disk is full.
        """
        facts = await self._facts(base_name)
        check_idle(facts.updates, {path})
        if path not in facts.nodes:
            raise NotFound(f"there is no domain {path!r}", reason="DOMAIN_NOT_FOUND")
        rows = facts.tables[path].rows
        keys = await self._key_blobs.read_keys(rows.keys_sha256)
        goal = Goal(facts.nodes[path], rows, keys, keys, frozenset([damaged]))
        draft = await self._drafting.draft(facts.base, [goal], is_first=False)
        is_started = draft is not None and await self._start(facts, draft)
        return draft.update.update_id if draft is not None and is_started else ""

    async def start(self, transaction: Transaction, draft: Draft) -> bool:
        """Keep a draft as an update; False if a blob of it is gone."""
        if len(await self._blob_sizes(draft.blobs)) < len(draft.blobs):
            return False
        put_update(transaction, draft.update, draft.work)
        return True

    async def _start(self, facts: Facts, draft: Draft) -> bool:
        async def start(transaction: Transaction) -> bool:
            tree = await Tree.load(transaction, facts.base.name)
            still = left_of(draft, tree.nodes)
            paths = {part.path for part in still.update.nodes}
            updates = await get_updates(transaction, facts.base.name)
            check_idle(updates, paths)
            now = Facts(tree.base, tree.nodes, tree.tables, updates, facts.sharing)
            if now.base.digest != facts.base.digest or now.marks(paths) != facts.marks(paths):
                return False
            if not paths or not await self.start(transaction, still):
                return False
            for part in still.update.nodes:
                node = tree.nodes[part.path]
                node.is_updating = True
                tree.put(node)
            return True

        return await self._database.change(start)

    async def _facts(self, base_name: str) -> Facts:
        async def read(transaction: Transaction) -> Facts:
            tree = await Tree.load(transaction, base_name)
            updates = await get_updates(transaction, base_name)
            tenants = await transaction.all(TENANTS)
            sharing = frozenset(tenant.name for tenant in tenants if tenant.shares_counts)
            return Facts(tree.base, tree.nodes, tree.tables, updates, sharing)

        return await self._database.change(read)

    async def _plan(
        self, facts: Facts, scope: set[str]
    ) -> tuple[dict[str, IntArray], dict[str, NodePlan]]:
        """The keys each node has, and the plans of those in scope. One whose corpus cannot be read
        keeps its rows."""
        own, unread = await self._own_counts(facts)
        scope = scope - unread
        nodes = [
            await self._node(facts, node, can_change=path in scope)
            for path, node in facts.nodes.items()
        ]
        m = self._options.rules.min_tenants

        def plan() -> dict[str, NodePlan]:
            changing = {path: facts.nodes[path] for path in scope}
            counts = CountsInTurn(changing, own, facts.sharing, m)
            return plan_tree(nodes, counts, self._options.rules)

        return {node.path: node.rows for node in nodes}, await asyncio.to_thread(plan)

    async def _node(self, facts: Facts, node: rpb.Domain, *, can_change: bool) -> Node:
        is_root = not node.path
        return Node(
            path=node.path,
            encoder=node.encoder_sha256,
            alpha=node.alpha or DEFAULT_ALPHA,
            max_rows=self._options.max_rows_of(facts.base, node),
            rows=await self._key_blobs.read_keys(facts.keys_blob(node.path)),
            kept=unigrams(facts.tables[""].vocab_size) if is_root else NONE,
            can_change=can_change,
            is_bounded=not node.tenant,
        )

    def _new_node(self, base: rpb.Base, node: rpb.Domain) -> Node:
        return Node(
            path=node.path,
            encoder=node.encoder_sha256,
            alpha=node.alpha or DEFAULT_ALPHA,
            max_rows=self._options.max_rows_of(base, node),
            rows=NONE,
            is_bounded=False,
        )

    async def _own_counts(self, facts: Facts) -> tuple[list[OwnCounts], set[str]]:
        """Every node's own counts, and the nodes of which a corpus cannot be read."""
        half_lives = {path: self._options.half_life_of(node) for path, node in facts.nodes.items()}
        sketches = await asyncio.to_thread(self._frequencies.sketches, facts.base.name, half_lives)
        own, unread = [], set()
        for path, node in facts.nodes.items():
            clock = self._frequencies.clock(facts.base.name, path)
            corpora = []
            for corpus in facts.tables[path].corpora:
                try:
                    counts = await self._read_counts(facts, corpus)
                except (FailedPrecondition, InvalidArgument) as error:
                    logger.warning(
                        "a corpus cannot be read: its domain keeps its rows",
                        extra={"base": facts.base.name, "path": path, "error": error.message},
                    )
                    unread.add(path)
                    continue
                passed = clock - corpus.clock
                corpora.append(
                    await asyncio.to_thread(corpus_source, corpus, counts, passed, half_lives[path])
                )
            traffic = [
                traffic_source(stream.tenant, sketch)
                for stream, sketch in sketches.items()
                if stream.path == path
            ]
            own.append(OwnCounts(node, tuple(corpora), tuple(traffic)))
        return own, unread

    async def _read_counts(self, facts: Facts, corpus: Corpus) -> NgramCounts:
        return await self._key_blobs.read_counts(
            "counts", corpus.sha256, facts.base.tokenizer_digest, facts.tables[""].vocab_size
        )
