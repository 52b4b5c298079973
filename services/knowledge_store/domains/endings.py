"""How updates end: committed, or rolled back for a reason that their nodes tell.

Knows what an update's end changes; does not know when one is over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from hmi.admin.v1 import resources_pb2 as rpb
from services.knowledge_store.domains.manifests import path_to
from services.knowledge_store.domains.records import Update, WorkRecord, delete_update
from services.knowledge_store.domains.tables import Tree
from services.knowledge_store.metadata.transaction import Transaction


def can_be_committed(tree: Tree, update: Update) -> bool:
    """Whether everything above an update's nodes is past its first update."""
    own = {part.path for part in update.nodes}
    above = {path for part in update.nodes for path in path_to(part.path)} - own
    return all(tree.tables[path].is_ready for path in above)


def commit(tree: Tree, update: Update, work: Mapping[str, WorkRecord]) -> None:
    """Give an update's nodes their rows, whose work is done; manifests are not named yet."""
    ended = _ended(update, rpb.UPDATE_OUTCOME_COMMITTED)
    for part in update.nodes:
        written = [s for work_id in part.work_ids for s in work[work_id].segments or ()]
        tree.nodes[part.path].last_update.CopyFrom(ended)
        tree.commit(part, written)
    delete_update(tree.transaction, update)


async def roll_back(transaction: Transaction, update: Update, reason: str) -> None:
    """Forget an update; its nodes stay as they are, and tell why."""
    delete_update(transaction, update)
    tree = await Tree.load(transaction, update.base)
    ended = _ended(update, rpb.UPDATE_OUTCOME_ROLLED_BACK, reason)
    for part in update.nodes:
        node = tree.node(part.path)
        node.is_updating = False
        node.last_update.CopyFrom(ended)
        tree.put(node)


def _ended(
    update: Update, outcome: rpb.UpdateOutcome.ValueType, reason: str = ""
) -> rpb.EndedUpdate:
    ended = rpb.EndedUpdate(update_id=update.update_id, outcome=outcome, reason=reason)
    ended.end_time.FromNanoseconds(time.time_ns())
    return ended
