"""Domains as tables and JSON.

Knows nodes and what is worth telling of them; does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any

from hmi.cli.domain_options import named
from hmi.cli.output import note, print_table, size, to_json
from hmi.client import Domain, DomainChange, DomainStats, EndedUpdate, UpdateOutcome


def hit_rates(stats: DomainStats) -> dict[str, float] | None:
    """Shares of its tokens by what answered them; None if none is counted."""
    lookups = stats.lookups
    if not lookups.num_tokens:
        return None
    return {
        "trigram": lookups.num_trigram / lookups.num_tokens,
        "bigram": lookups.num_bigram / lookups.num_tokens,
        "unigram": lookups.num_unigram / lookups.num_tokens,
        "computed": lookups.num_computed / lookups.num_tokens,
    }


def saved_bytes(nodes: Sequence[DomainStats]) -> int:
    """What flat tables that answer the same lookups would take more than these nodes: one for each
    node that models read. A node that none reads takes bytes and would have no flat table."""
    flat_bytes = sum(stats.flat_bytes for stats in nodes if stats.num_versions)
    return max(0, flat_bytes - sum(stats.size_bytes for stats in nodes))


def rows_by_order(stats: DomainStats) -> tuple[int, int, int]:
    """Rows of its own: unigrams, bigrams, trigrams."""
    unigrams, bigrams, trigrams = (*stats.num_entries, 0, 0, 0)[:3]
    return unigrams, bigrams, trigrams


def rolled_back(domain: Domain) -> EndedUpdate | None:
    """Its last update, if that was rolled back."""
    last = domain.last_update
    return last if last is not None and last.outcome is UpdateOutcome.ROLLED_BACK else None


def how_rolled_back(path: str, ended: EndedUpdate) -> str:
    """When and why a domain's update was rolled back, in a line."""
    at = ended.end_time.astimezone(UTC)
    return f"domain {named(path)} was rolled back at {at:%Y-%m-%d %H:%M:%S} UTC: {ended.reason}"


def _note_rolled_back(nodes: Iterable[DomainStats]) -> None:
    for stats in nodes:
        if ended := rolled_back(stats.domain):
            note(f"the last update of {how_rolled_back(stats.domain.path, ended)}")


def tree_table(nodes: Sequence[DomainStats]) -> None:
    """A tree, parents before children, on stdout."""
    print_table(
        ("domain", "1-grams", "2-grams", "3-grams", "bytes", "hits 3/2/1/none", "saved"),
        [_tree_row(stats) for stats in nodes]
        + [("total", *_totals(nodes), None, size(saved_bytes(nodes)))],
        whole=("domain", "bytes", "hits 3/2/1/none"),
    )
    _note_rolled_back(nodes)


def _tree_row(stats: DomainStats) -> tuple[object, ...]:
    domain = stats.domain
    depth = domain.path.count("/") + 1 if domain.path else 0
    marks = (" (updating)" if domain.is_updating else "") + (" (private)" if domain.tenant else "")
    marks += " (no table)" if rolled_back(domain) and not domain.table_version else ""
    rates = hit_rates(stats)
    name = domain.path.rpartition("/")[2] or named("")
    return (
        "  " * depth + name + marks,
        *rows_by_order(stats),
        size(stats.size_bytes),
        None if rates is None else " / ".join(f"{rate:.0%}" for rate in rates.values()),
        size(saved_bytes([stats])),
    )


def _totals(nodes: Sequence[DomainStats]) -> tuple[object, ...]:
    sums = [sum(column) for column in zip(*map(rows_by_order, nodes), strict=True)] or [0, 0, 0]
    return (*sums, size(sum(stats.size_bytes for stats in nodes)))


def tree_as_json(base: str, nodes: Sequence[DomainStats]) -> Any:
    """A tree as JSON types, with hit rates and savings worked out."""
    return {
        "base": base,
        "saved_bytes": saved_bytes(nodes),
        "nodes": [
            {
                **to_json(stats),
                "hit_rates": hit_rates(stats),
                "saved_bytes": saved_bytes([stats]),
            }
            for stats in nodes
        ],
    }


def stats_table(nodes: Sequence[DomainStats]) -> None:
    """What nodes hold and what their models take, on stdout."""
    print_table(
        ("domain", "policy", "rows", "bytes", "models", "a model", "tokens", "table", "committed"),
        (
            (
                named(stats.domain.path),
                stats.domain.miss_policy,
                sum(stats.num_entries),
                size(stats.size_bytes),
                stats.num_versions,
                size(stats.version_bytes / stats.num_versions) if stats.num_versions else None,
                int(stats.counted_tokens),
                stats.domain.table_version[:12] or None,
                stats.commit_time,
            )
            for stats in nodes
        ),
        whole=("table", "bytes"),
    )
    _note_rolled_back(nodes)


def changes_table(changes: Sequence[DomainChange]) -> None:
    """What an update changes, on stdout."""
    print_table(
        ("domain", "order", "in", "moved up", "out", "later", "rows", "coverage"),
        (
            (
                named(change.path),
                change.order,
                change.num_added,
                change.num_promoted,
                change.num_removed,
                change.num_deferred,
                change.num_entries,
                f"{change.coverage_before:.1%} → {change.coverage_after:.1%}",
            )
            for change in changes
        ),
    )
