"""Which rows each node of a domain tree should hold: pure functions of counts, on numpy arrays."""

from services.knowledge_store.tree.changes import ChangeRules
from services.knowledge_store.tree.counts import NodeCounts, Source, combine
from services.knowledge_store.tree.planning import Node, NodePlan, OrderChange, plan_tree

__all__ = [
    "ChangeRules",
    "Node",
    "NodeCounts",
    "NodePlan",
    "OrderChange",
    "Source",
    "combine",
    "plan_tree",
]
