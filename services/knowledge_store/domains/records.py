"""What the store keeps of domains for itself: tables, updates and work, as JSON in Redis.

Knows their fields; does not know when they change.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from hmi.admin.v1 import resources_pb2 as rpb
from hmi.knowledge.v1 import domain_pb2 as pb
from services.knowledge_store.metadata.kinds import (
    DOMAIN_TABLES,
    DOMAIN_UPDATES,
    DOMAIN_WORK,
    domain_name,
)
from services.knowledge_store.metadata.transaction import Transaction

ByOrder = tuple[int, int, int]


class Record(BaseModel):
    """Immutable; unknown fields are an error, so that an older store does not drop them."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SegmentRecord(Record):
    """As admin.v1.Segment."""

    sha256: str
    order: int
    num_entries: int
    size_bytes: int
    is_removal: bool = False

    @classmethod
    def from_pb(cls, segment: rpb.Segment) -> SegmentRecord:
        return cls(
            sha256=segment.sha256, order=segment.order, num_entries=segment.num_entries,
            size_bytes=segment.size_bytes, is_removal=segment.is_removal,
        )  # fmt: skip

    def to_pb(self) -> rpb.Segment:
        return rpb.Segment(**self.model_dump())


class Rows(Record):
    """A node's own rows.

    Attributes:
        segments: In the order they apply.
        keys_sha256: The blob with all their keys; empty: none.
        num_entries: Rows of order 1, 2 and 3.
    """

    segments: tuple[SegmentRecord, ...] = ()
    keys_sha256: str = ""
    num_entries: ByOrder = (0, 0, 0)

    @property
    def blobs(self) -> set[str]:
        """sha256 of every blob that holds them."""
        held = {segment.sha256 for segment in self.segments}
        return held | {self.keys_sha256} if self.keys_sha256 else held


class Corpus(Record):
    """Counts given by an admin, or by the domain's own tenant.

    Attributes:
        sha256: The counts' blob.
        clock: The domain's clock (tokens) when they were given.
        num_tokens: Tokens counted.
        is_whole: They name every n-gram of their corpus; else those that should have a row.
    """

    sha256: str
    clock: float = 0.0
    num_tokens: int = 0
    is_whole: bool = True


class Table(Record):
    """What a node has beside its admin.v1.Domain.

    Attributes:
        is_ready: It is past its first update: answers may be made with it.
        rows: Its rows now.
        previous: Its rows before the last commit, to go back to.
        corpora: What it was made from, and is still chosen by as far as not decayed.
        vocab_size: Token ids of the base (the root's only).
        commit_time_s: When its rows last changed, Unix seconds; 0: never.
    """

    is_ready: bool = False
    rows: Rows = Rows()
    previous: Rows | None = None
    corpora: tuple[Corpus, ...] = ()
    vocab_size: int = 0
    commit_time_s: float = 0.0


class NodeUpdate(Record):
    """One node's part of an update.

    Attributes:
        path: The node.
        table_number: What it had when the update was planned.
        kept: Segments it keeps.
        removals: Segments of removed keys, which apply last.
        work_ids: Work whose segments come between, in the order they apply.
        keys_sha256, num_entries: As in Rows, of the result.
        is_repair: Rows before it cannot be read: there is no way back to them.
    """

    path: str
    table_number: int
    kept: tuple[SegmentRecord, ...]
    removals: tuple[SegmentRecord, ...]
    work_ids: tuple[str, ...]
    keys_sha256: str
    num_entries: ByOrder
    is_repair: bool = False


class Update(Record):
    """A planned change of tables, committed at once when all its work is done.

    Attributes:
        base: The tree.
        is_first: It makes one new node's first table, and has all the time it needs.
        start_time_s: Unix seconds.
        last_progress_s: When its work was last leased, renewed or completed, Unix seconds, to
            within a lease.
    """

    update_id: str
    base: str
    is_first: bool
    start_time_s: float
    last_progress_s: float = 0.0
    nodes: tuple[NodeUpdate, ...]

    @property
    def idle_since_s(self) -> float:
        """Since when nothing was heard of its work, Unix seconds."""
        return max(self.start_time_s, self.last_progress_s)


class WorkRecord(Record):
    """Rows to materialise: knowledge.v1.Work, with who holds it and what came of it.

    Attributes:
        token: Lease token of whom it was last given to; empty: nobody yet.
        executor_id: Who that is.
        tries: How often it was given out.
        segments: What was written; None: not done.
        restores: A damaged segment's sha256, which the same rows give again; such work is in no
            update.
    """

    work_id: str
    update_id: str
    base: str
    base_digest: str
    path: str
    encoder_sha256: str
    order: int
    keys_sha256: str
    num_entries: int
    expected_version: int
    token: str = ""
    executor_id: str = ""
    tries: int = 0
    segments: tuple[SegmentRecord, ...] | None = None
    restores: str = ""

    def to_pb(self, *, lease_ms: int) -> pb.Work:
        return pb.Work(
            work_id=self.work_id, base_digest=self.base_digest, path=self.path,
            encoder_sha256=self.encoder_sha256, order=self.order, keys_sha256=self.keys_sha256,
            num_entries=self.num_entries, expected_version=self.expected_version,
            lease_token=self.token, lease_ms=lease_ms,
        )  # fmt: skip


async def get_table(transaction: Transaction, base: str, path: str) -> Table:
    """A node's table; an empty one if it has none yet."""
    data = await transaction.record(DOMAIN_TABLES, domain_name(base, path))
    return Table() if data is None else Table.model_validate_json(data)


def put_table(transaction: Transaction, base: str, path: str, table: Table | None) -> None:
    """Keep a node's table; None deletes it."""
    data = None if table is None else table.model_dump_json().encode()
    transaction.put_record(DOMAIN_TABLES, domain_name(base, path), data)


async def get_updates(transaction: Transaction, base: str | None = None) -> list[Update]:
    """Updates being worked on, of one base or all, the oldest first."""
    found = (await transaction.records(DOMAIN_UPDATES)).values()
    updates = [Update.model_validate_json(data) for data in found]
    wanted = [update for update in updates if base in (None, update.base)]
    return sorted(wanted, key=lambda update: (update.start_time_s, update.update_id))


async def get_update(transaction: Transaction, update_id: str) -> Update | None:
    """One update being worked on."""
    data = await transaction.record(DOMAIN_UPDATES, update_id)
    return None if data is None else Update.model_validate_json(data)


async def get_work(transaction: Transaction, work_id: str) -> WorkRecord | None:
    """One piece of work."""
    data = await transaction.record(DOMAIN_WORK, work_id)
    return None if data is None else WorkRecord.model_validate_json(data)


async def get_all_work(transaction: Transaction) -> list[WorkRecord]:
    """All work there is: that of older updates first, what restores segments before it; of one
    update parents' before children's.
    """
    ages = {update.update_id: age for age, update in enumerate(await get_updates(transaction), 1)}
    found = (await transaction.records(DOMAIN_WORK)).values()
    work = [WorkRecord.model_validate_json(data) for data in found]

    def rank(piece: WorkRecord) -> tuple[int, int, str, str]:
        depth = len(piece.path.split("/")) if piece.path else 0
        return ages.get(piece.update_id, 0), depth, piece.path, piece.work_id

    return sorted(work, key=rank)


def put_work(transaction: Transaction, work: WorkRecord) -> None:
    """Keep a piece of work."""
    transaction.put_record(DOMAIN_WORK, work.work_id, work.model_dump_json().encode())


def put_update(transaction: Transaction, update: Update, work: Iterable[WorkRecord]) -> None:
    """Keep a new update with its work."""
    transaction.put_record(DOMAIN_UPDATES, update.update_id, update.model_dump_json().encode())
    for piece in work:
        put_work(transaction, piece)


def delete_update(transaction: Transaction, update: Update) -> None:
    """Forget an update and its work."""
    transaction.put_record(DOMAIN_UPDATES, update.update_id, None)
    for node in update.nodes:
        for work_id in node.work_ids:
            transaction.put_record(DOMAIN_WORK, work_id, None)
