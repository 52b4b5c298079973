"""Tables that are loaded: who uses them, since when nobody does, and what their nodes take.

Knows counts and sums, kept as tables come and go, so that no question walks over all nodes; does
not know budgets or how tables are made. Not thread-safe: the store's lock guards it.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterator

from services.common.errors import Internal
from services.executor.plot.node import NodeTable
from services.executor.plot.table import Table

_CLAIM_S = 2.0


class LoadedTables:
    """Tables by version.

    Attributes:
        size_bytes: Host memory of every node, each counted once.
        num_rows: Rows of every node, each counted once.
    """

    def __init__(self) -> None:
        self.size_bytes = 0
        self.num_rows = 0
        self._tables: dict[str, Table] = {}
        self._num_users: Counter[str] = Counter()
        # Versions nobody uses, since when in time.monotonic() seconds; the longest first.
        self._idle: OrderedDict[str, float] = OrderedDict()
        self._claimed_until: dict[str, float] = {}  # of idle versions, on the same clock
        self._num_tables: Counter[NodeTable] = Counter()  # that each node is part of

    def __len__(self) -> int:
        return len(self._tables)

    def __contains__(self, version: str) -> bool:
        return version in self._tables

    def __iter__(self) -> Iterator[Table]:
        return iter(self._tables.values())

    @property
    def nodes(self) -> list[NodeTable]:
        """Every node once."""
        return list(self._num_tables)

    def add(self, table: Table, *, is_claimed: bool) -> None:
        """Take in a table that nobody uses yet. A claimed one is not idle before it was of use, or
        nobody came for it for a while: it must not leave before those look again who wait for it.
        """
        now = time.monotonic()
        self._tables[table.version] = table
        self._idle[table.version] = now
        if is_claimed:
            self._claimed_until[table.version] = now + _CLAIM_S
        for node in set(table.nodes):
            if not self._num_tables[node]:
                self.size_bytes += node.size_bytes
                self.num_rows += len(node)
            self._num_tables[node] += 1

    def lend(self, version: str) -> Table | None:
        """A table, in use until it is taken back; None if it is not loaded."""
        table = self._tables.get(version)
        if table is not None:
            self._num_users[version] += 1
            self._idle.pop(version, None)
            self._claimed_until.pop(version, None)
        return table

    def take_back(self, table: Table) -> None:
        """End one use.

        Raises:
            Internal: It is not in use.
        """
        version = table.version
        if self._tables.get(version) is not table or not self._num_users[version]:
            raise Internal("a table was released that nobody had acquired")
        self._num_users[version] -= 1
        if not self._num_users[version]:
            del self._num_users[version]
            self._idle[version] = time.monotonic()

    def longest_idle(self) -> tuple[str, float] | None:
        """The version that nobody has used for the longest time, and since when."""
        now = time.monotonic()
        for version, since in self._idle.items():
            if self._claimed_until.get(version, now) <= now:
                return version, since
        return None

    def drop(self, version: str) -> bool:
        """Let a version go unless it is in use; whether it went.

        One that shares all its nodes with others frees nothing and still goes: it comes back at
        once, for the same reason.
        """
        if self._idle.pop(version, None) is None:
            return False
        self._claimed_until.pop(version, None)
        for node in set(self._tables.pop(version).nodes):
            self._num_tables[node] -= 1
            if not self._num_tables[node]:
                del self._num_tables[node]
                self.size_bytes -= node.size_bytes
                self.num_rows -= len(node)
        return True
