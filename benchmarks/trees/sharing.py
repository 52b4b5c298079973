"""Traffic under the sharing rules: what they cost, and how tables follow traffic that moves.

Knows tenants, rounds of traffic and updates, by the store's own counting and planning; does not
know how its figures are reported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from benchmarks.trees.lookups import Hits, look_up
from benchmarks.trees.tables import UNLIMITED
from benchmarks.trees.texts import ROOT, Text, is_within, source
from services.common.ngram_counts import answering_keys
from services.common.ngrams import IntArray
from services.common.sorted_keys import NONE
from services.knowledge_store.domains.sources import traffic_source
from services.knowledge_store.frequency.frequencies import (
    Frequencies,
    Observation,
    Stream,
)
from services.knowledge_store.tree import (
    ChangeRules,
    Node,
    NodeCounts,
    NodePlan,
    Source,
    combine,
    plan_tree,
)

_BASE = "hminilm"
_MAX_KEYS, _MAX_TOTAL_KEYS = 1 << 18, 1 << 24
_NO_LOOKUPS = (0, 0, 0, 0, 0)  # nothing is looked up here, only counted


def shared_counts(
    texts: Sequence[Text], nodes: Sequence[str], min_tenants: int
) -> dict[str, NodeCounts]:
    """Each node's counts where every document is a tenant's of its own, all of them willing."""
    own = [(text.path, source(str(number), [text])) for number, text in enumerate(texts)]
    return {
        node: combine(
            [counts for path, counts in own if is_within(path, node)],
            is_private=False,
            min_tenants=min_tenants,
        )
        for node in nodes
    }


@dataclass(frozen=True, slots=True)
class Sent:
    """What one tenant sends in one round; a text may be sent many times."""

    tenant: str
    texts: Sequence[Text]
    num_times: float = 1.0


@dataclass
class Domain:
    """One domain below a root, its counts and its rows, as the store keeps them.

    Args:
        path: Its path.
        root: The root's keys, which stay.
        half_life_tokens: Of its counts.
        corpus: An exempt corpus that it began with, decaying like all counts; may be empty.
        alpha: Share to cover.
        max_rows: What its budget pays for.
    """

    path: str
    root: IntArray
    half_life_tokens: float
    corpus: Source | None = None
    alpha: float = 0.5
    max_rows: int = UNLIMITED
    rules: ChangeRules = field(default_factory=ChangeRules)
    rows: IntArray = field(default_factory=lambda: NONE)

    def __post_init__(self) -> None:
        self._frequencies = Frequencies(max_keys=_MAX_KEYS, max_total_keys=_MAX_TOTAL_KEYS)
        self._sequence = 0

    def observe(self, round_: Sequence[Sent]) -> None:
        """Count one round."""
        observations = [self._observation(sent) for sent in round_ if sent.texts]
        self._sequence += 1
        self._frequencies.observe("executor", 0, self._sequence, observations)

    def _observation(self, sent: Sent) -> Observation:
        full = np.concatenate([text.keys for text in sent.texts])
        keys, counts = np.unique(answering_keys(full), return_counts=True)
        return Observation(
            Stream(_BASE, self.path, sent.tenant),
            keys,
            (counts * sent.num_times).astype(np.float64),
            int(len(full) * sent.num_times),
            self.half_life_tokens,
            _NO_LOOKUPS,
        )

    def plan(self, *, is_first: bool = False) -> NodePlan:
        """What its next update would do; `is_first`: not bounded, as a table built anew."""
        sketches = self._frequencies.sketches(_BASE, {self.path: self.half_life_tokens})
        sources = [traffic_source(stream.tenant, sketch) for stream, sketch in sketches.items()]
        if self.corpus is not None:
            sources.append(self._decayed_corpus(self.corpus))
        counts = combine(sources, is_private=False, min_tenants=self.rules.min_tenants)
        nodes = [
            Node(ROOT, _BASE, self.alpha, len(self.root), self.root, can_change=False),
            Node(
                self.path, _BASE, self.alpha, self.max_rows, NONE if is_first else self.rows,
                is_bounded=not is_first,
            ),
        ]  # fmt: skip
        return plan_tree(nodes, {self.path: counts}, self.rules)[self.path]

    def update(self, *, is_first: bool = False) -> float:
        """Change the rows; returns rows added and removed, as a share of the larger of the tables
        before and wanted."""
        wanted = self.plan(is_first=True).rows
        num_before = len(self.rows)
        plan = self.plan(is_first=is_first)
        self.rows = plan.rows
        changed = len(plan.added) + len(plan.removed)
        return changed / max(num_before, len(wanted), 1)

    def hits(self, texts: Sequence[Text]) -> Hits:
        """Look texts up in its rows and the root's."""
        return look_up(texts, {ROOT: self.root, self.path: self.rows})

    def _decayed_corpus(self, corpus: Source) -> Source:
        passed = self._frequencies.clock(_BASE, self.path)
        factor = 0.5 ** (passed / self.half_life_tokens)
        return Source("", corpus.keys, corpus.weights * factor, corpus.totals * factor)


def rounds(texts: Sequence[Text], num_tenants: int, tokens: int) -> Iterator[list[Sent]]:
    """Texts dealt to tenants in turn, a round about `tokens` tokens long."""
    dealt: list[list[Text]] = [[] for _ in range(num_tenants)]
    size = 0
    for number, text in enumerate(texts):
        dealt[number % num_tenants].append(text)
        size += len(text.keys)
        if size >= tokens:
            yield [Sent(f"tenant-{place}", some) for place, some in enumerate(dealt)]
            dealt, size = [[] for _ in range(num_tenants)], 0


def with_path(texts: Sequence[Text], path: str, seed: int) -> list[Text]:
    """The texts as another domain's, in random order."""
    order = np.random.default_rng(seed).permutation(len(texts))
    return [Text(path, texts[place].keys) for place in order]
