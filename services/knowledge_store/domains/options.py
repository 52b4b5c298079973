"""What a deployment says of domains; the settings' descriptions are in `config`.

Knows numbers only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hmi.admin.v1 import resources_pb2 as rpb
from services.knowledge_store.domains.key_blobs import MAX_SEGMENT_BYTES, row_bytes
from services.knowledge_store.tree import ChangeRules

DEFAULT_ALPHA = 0.5
_KEY_BYTES = 8
_HEADER_BYTES = 4_096


@dataclass(frozen=True)
class DomainOptions:
    """Defaults and bounds.

    Attributes:
        byte_budget: Of a node that names none.
        half_life_tokens: Of a node that names none.
        max_domains: Nodes of one tree.
        max_tenant_domains: Nodes of all trees that are one tenant's.
        max_tenant_bytes: Bytes of values that a tenant's node may have at most.
        max_tenant_counts_bytes: Bytes of counts that a tenant's node may be made from.
        rows_per_work: Rows that are given out at once, if they fit in one segment.
        max_segments: Segments of one order in a node, beyond which they are written anew.
        work_lease_s: How long leased work may go without a renewal.
        work_tries: How often work is given out until its update is given up.
        update_timeout_s: How long nobody may work on an update.
        update_interval_s: Time between scheduled updates; 0: none.
        rules: What bounds an update.
    """

    byte_budget: int
    half_life_tokens: int
    max_domains: int
    max_tenant_domains: int
    max_tenant_bytes: int
    max_tenant_counts_bytes: int
    rows_per_work: int
    work_lease_s: float
    work_tries: int
    update_timeout_s: float
    update_interval_s: float
    max_segments: int = 8
    rules: ChangeRules = field(default_factory=ChangeRules)

    def half_life_of(self, node: rpb.Domain) -> float:
        """Tokens after which a count weighs half."""
        return float(node.half_life_tokens or self.half_life_tokens)

    def max_rows_of(self, base: rpb.Base, node: rpb.Domain) -> int:
        """Rows that a node's budget pays for."""
        budget = node.byte_budget or self.byte_budget
        most = min(budget, self.max_tenant_bytes) if node.tenant else budget
        return most // row_bytes(base)

    def rows_per_work_of(self, base: rpb.Base) -> int:
        """Rows of one piece of work: they fit in one segment."""
        fitting = (MAX_SEGMENT_BYTES - _HEADER_BYTES) // (_KEY_BYTES + row_bytes(base))
        return max(1, min(self.rows_per_work, fitting))
