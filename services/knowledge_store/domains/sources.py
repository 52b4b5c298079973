"""What a tree's nodes counted: corpora and traffic, decayed, as far as each node may use them.

Knows who shares counts with whom; does not know what is chosen from them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hmi.admin.v1 import resources_pb2 as rpb
from services.common.ngram_counts import NgramCounts
from services.common.ngrams import MAX_ORDER, order_of
from services.common.sorted_keys import FloatArray, IntArray
from services.knowledge_store.domains.options import DEFAULT_ALPHA
from services.knowledge_store.domains.records import Corpus, Table
from services.knowledge_store.domains.tables import is_below
from services.knowledge_store.frequency.frequencies import decay
from services.knowledge_store.frequency.sketch import Sketch
from services.knowledge_store.tree import NodeCounts, Source, combine

# Of a token inside a text: it alone, with either neighbour, with both.
_NGRAMS_A_TOKEN = np.array([1.0, 2.0, 1.0])


@dataclass(frozen=True)
class OwnCounts:
    """One node's own counts: its corpora's, which `tenant` gave ("": an admin), and its traffic."""

    node: rpb.Domain
    corpora: tuple[Source, ...]
    traffic: tuple[Source, ...]


def corpus_source(corpus: Corpus, counts: NgramCounts, passed: float, half_life: float) -> Source:
    """A corpus's counts once `passed` tokens have moved its domain's clock; exempt."""
    is_counted = counts.counts > 0
    # Mostly all are: then keys stay where they lie, in the blob's mapped file.
    keys = counts.keys if is_counted.all() else counts.keys[is_counted]
    factor = decay(passed, half_life)
    weights: FloatArray = counts.counts[is_counted].astype(np.float64) * factor
    totals = _totals(keys, weights, 0.0)
    # The list that an encoder came with is the share of its corpus that the default alpha covers.
    return Source("", keys, weights, totals if corpus.is_whole else totals / DEFAULT_ALPHA)


def traffic_source(tenant: str, sketch: Sketch) -> Source:
    """A tenant's traffic."""
    totals = _totals(sketch.keys, sketch.weights, sketch.num_tokens)
    return Source(tenant, sketch.keys, sketch.weights, totals)


def node_counts(
    node: rpb.Domain, own: Iterable[OwnCounts], sharing: Collection[str], min_tenants: int
) -> NodeCounts:
    """All that counts for a node: its own and its sub-domains'.

    Args:
        node: The node.
        own: Of every node of its tree.
        sharing: Tenants whose counts may shape shared nodes.
        min_tenants: m of the sharing rules.
    """
    within = [
        counts
        for counts in own
        if counts.node.path == node.path or is_below(counts.node.path, node.path)
    ]
    if node.tenant:
        sources = [source for counts in within for source in (*counts.corpora, *counts.traffic)]
        return combine(sources, is_private=True, min_tenants=min_tenants)
    sources = []
    for counts in within:
        owner = counts.node.tenant
        # What a tenant gave its own domain is, to a shared one above, that tenant's traffic.
        if not owner or owner in sharing:
            sources += [Source(owner, c.keys, c.weights, c.totals) for c in counts.corpora]
        sources += [source for source in counts.traffic if source.tenant in sharing]
    return combine(sources, is_private=False, min_tenants=min_tenants)


class CountsInTurn(Mapping[str, NodeCounts]):
    """All that counts for each of some nodes, made when it is asked for; the last is kept.

    A parent's counts name all that its children's do: held together, they would take a tree's
    depth times the memory.

    Args:
        nodes: By path.
        own: Of every node of their tree.
        sharing: Tenants whose counts may shape shared nodes.
        min_tenants: m of the sharing rules.
    """

    def __init__(
        self,
        nodes: Mapping[str, rpb.Domain],
        own: Sequence[OwnCounts],
        sharing: Collection[str],
        min_tenants: int,
    ) -> None:
        self._nodes = nodes
        self._own = own
        self._sharing = sharing
        self._min_tenants = min_tenants
        self._last: tuple[str, NodeCounts] | None = None

    def __getitem__(self, path: str) -> NodeCounts:
        if self._last is None or self._last[0] != path:
            self._last = None  # before the next is made, not after
            counts = node_counts(self._nodes[path], self._own, self._sharing, self._min_tenants)
            self._last = path, counts
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)


def counted_tokens(
    path: str,
    tables: Mapping[str, Table],
    clocks: Mapping[str, float],
    half_lives: Mapping[str, float],
    traffic: Mapping[str, float],
) -> float:
    """Decayed tokens counted in a node and its sub-domains; `traffic` is by path."""
    total = 0.0
    for other, table in tables.items():
        if other == path or is_below(other, path):
            total += traffic.get(other, 0.0)
            for corpus in table.corpora:
                passed = clocks[other] - corpus.clock
                total += corpus.num_tokens * decay(passed, half_lives[other])
    return total


def _totals(keys: IntArray, weights: FloatArray, num_tokens: float) -> FloatArray:
    """Occurrences by order: what is named, or as many as `num_tokens` tokens have."""
    named = np.bincount(order_of(keys), weights, minlength=MAX_ORDER + 1)[1:]
    return np.maximum(named, _NGRAMS_A_TOKEN * num_tokens)
