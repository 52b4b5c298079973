"""A table version: the nodes on a domain's path, and which of their rows answers for a token.

Knows order classes and the path; does not know where rows lie, who asks, or how misses are
computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from services.common import ngrams
from services.common.ngrams import IntArray
from services.executor.miss_policy import MissPolicy
from services.executor.plot.device_table import DeviceTable
from services.executor.plot.index import ABSENT, SlotArray
from services.executor.plot.manifest import Manifest
from services.executor.plot.node import NodeTable

ResultArray = NDArray[np.uint8]


class Result(IntEnum):
    """What answered for a token: the order of the n-gram that was found, or nothing."""

    COMPUTED = 0
    UNIGRAM = 1
    BIGRAM = 2
    TRIGRAM = 3


class RowEncoder(Protocol):
    """Computes rows: a `LocalEncoder`."""

    def rows(self, keys: Tensor) -> Tensor:
        """fp16 `[n, slots, hidden]` for int64 `[n]`; the same bits in whatever company."""
        ...


# Design section 5: (left, centre, right), (left, centre), else (centre, right), centre. A key that
# has no right neighbour is its own second candidate: asking twice costs little and changes nothing.
BACKOFF: tuple[Callable[[IntArray], IntArray], ...] = (
    lambda keys: keys,
    ngrams.without_right,
    ngrams.without_left,
    ngrams.only_centre,
)
_COMPUTE = BACKOFF[:1]


@dataclass(frozen=True, slots=True)
class Found:
    """Where the rows of some tokens are.

    Attributes:
        nodes: int16 `[n]`: place of the node on the path, 0 is the root; ABSENT: no row.
        numbers: int32 `[n]`: the row's number in that node.
        results: uint8 `[n]`: see `Result`.
    """

    nodes: NDArray[np.int16]
    numbers: SlotArray
    results: ResultArray

    @classmethod
    def nothing(cls, num_tokens: int) -> Found:
        """No token has a row."""
        return cls(
            np.full(num_tokens, ABSENT, np.int16),
            np.full(num_tokens, ABSENT, np.int32),
            np.full(num_tokens, Result.COMPUTED, np.uint8),
        )


class Table:
    """A path of nodes under one miss policy. Its answers never change; any thread may read it.

    Args:
        version: sha256 of the manifest, in hex.
        manifest: Its content.
        nodes: From the root to the leaf.
        encoder: Computes what is missing; needed under the policy `compute` only.
    """

    def __init__(
        self,
        version: str,
        manifest: Manifest,
        nodes: tuple[NodeTable, ...],
        encoder: RowEncoder | None = None,
    ) -> None:
        self.version = version
        self.manifest = manifest
        self.nodes = nodes
        self.encoder = encoder
        self.computes = manifest.miss_policy is MissPolicy.COMPUTE
        if self.computes and encoder is None:
            raise ValueError("a table under the policy compute needs its encoder")
        self._candidates = _COMPUTE if self.computes else BACKOFF
        # From the leaf up. Under `compute` a row counts only if the leaf's encoder made it.
        self.searched = [
            (place, node)
            for place, node in reversed(list(enumerate(nodes)))
            if len(node) and (not self.computes or node.encoder_sha256 == manifest.encoder_sha256)
        ]

    @property
    def distinct(self) -> tuple[NodeTable, ...]:
        """The nodes that are searched, from the leaf up; one that is there twice (its rows are the
        same) only where it is met first."""
        return tuple(dict.fromkeys(node for _, node in self.searched))

    def on_device(self) -> DeviceTable | None:
        """The whole table in device memory, if it is there at this moment; its answers are the
        same. Under `compute` the host must know what is missing, so there is none."""
        nodes = [node.hot.on_device for _, node in self.searched]
        complete = [node for node in nodes if node is not None]
        if self.computes or not nodes or len(complete) < len(nodes):
            return None
        return DeviceTable(complete)

    def find(self, keys: IntArray) -> Found:
        """The rows that answer for tokens with these fullest n-grams, int64 `[n]`."""
        answer = Found.nothing(len(keys))
        pending = np.arange(len(keys))
        for candidate in self._candidates:
            wanted = candidate(keys[pending])
            for place, node in self.searched:
                if not len(pending):
                    return answer
                found = node.find(wanted)
                is_hit = found != ABSENT
                hits = pending[is_hit]
                answer.nodes[hits] = place
                answer.numbers[hits] = found[is_hit]
                answer.results[hits] = ngrams.order_of(wanted[is_hit])
                pending, wanted = pending[~is_hit], wanted[~is_hit]
        return answer
