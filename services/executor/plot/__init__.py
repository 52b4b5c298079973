"""PLOT: precomputed lookup tables of n-gram representations, along the path of a domain.

`segment` and `manifest` are the formats, `index` finds keys, `node` and `table` are what one table
version answers, `hot`, `tier` and `device_table` keep rows near, `loader`, `loaded` and
`store` bring table versions in and lend them, `cache` and `retrieve` serve batches.
"""

from services.executor.plot.cache import RowCaches
from services.executor.plot.loader import TableBase, TableBlobs, TableLoader
from services.executor.plot.manifest import Manifest, NodeRef, SegmentRef
from services.executor.plot.retrieve import Retrieved, Retriever, RowSource
from services.executor.plot.segment import Segment, SegmentKind, WrittenSegment, write_segments
from services.executor.plot.store import TableStore
from services.executor.plot.table import Result, RowEncoder, Table
from services.executor.plot.tier import HotTier

__all__ = [
    "HotTier",
    "Manifest",
    "NodeRef",
    "Result",
    "Retrieved",
    "Retriever",
    "RowCaches",
    "RowEncoder",
    "RowSource",
    "Segment",
    "SegmentKind",
    "SegmentRef",
    "Table",
    "TableBase",
    "TableBlobs",
    "TableLoader",
    "TableStore",
    "WrittenSegment",
    "write_segments",
]
