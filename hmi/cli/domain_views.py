"""Domains as tables and JSON.

Knows nodes and what is worth telling of them; does not know where they come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any

from hmi.cli.domain_options import named
from hmi.cli.output import note, print_table, size, to_json
from hmi.client import Domain, DomainChange, DomainStats, EndedUpdate, UpdateOutcome

_TREE_LEGEND = (
    "rows are a domain's own, those above it left out; flat: what one table of all that its models "
    "look up would take, - if it has none; hits: tokens answered by a 3-, 2-, 1-gram or computed"
)
_STATS_LEGEND = (
    "models: versions that read it, and what one takes beside the table; tokens: counted in "
    "corpora and traffic, sub-domains' too, older ones for less; -: none, or for admins to see"
)
_CHANGES_LEGEND = (
    "in, out: rows that come and go; moved up: of those in, as two sub-domains want them; later: "
    "what one update may not change yet; rows: afterwards; coverage: share of what is counted that "
    "has a row, here or above"
)


def hit_rates(stats: DomainStats) -> dict[str, float] | None:
    """Shares of its tokens by what answered them; None if none is counted, or not for us to see."""
    lookups = stats.lookups
    if lookups is None or not lookups.num_tokens:
        return None
    return {
        "trigram": lookups.num_trigram / lookups.num_tokens,
        "bigram": lookups.num_bigram / lookups.num_tokens,
        "unigram": lookups.num_unigram / lookups.num_tokens,
        "computed": lookups.num_computed / lookups.num_tokens,
    }


def flat_bytes(nodes: Sequence[DomainStats]) -> int | None:
    """What flat tables that answer the same lookups would take: one for each node that models read,
    as a node that none reads would have none. None if which are read is not for us to see."""
    if any(stats.num_versions is None for stats in nodes):
        return None
    return sum(stats.flat_bytes for stats in nodes if stats.num_versions)


def saved_bytes(nodes: Sequence[DomainStats]) -> int | None:
    """What flat tables would take more than these nodes do; None as `flat_bytes`."""
    flat = flat_bytes(nodes)
    return None if flat is None else max(0, flat - _size_bytes(nodes))


def _size_bytes(nodes: Sequence[DomainStats]) -> int:
    return sum(stats.size_bytes for stats in nodes)


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
    sums = [sum(column) for column in zip(*map(rows_by_order, nodes), strict=True)]
    print_table(
        ("domain", "1-grams", "2-grams", "3-grams", "bytes", "flat", "hits 3/2/1/computed"),
        [_tree_row(stats) for stats in nodes]
        + [("total", *sums, size(_size_bytes(nodes)), _size(flat_bytes(nodes)), None)],
        whole=("domain", "bytes", "flat", "hits 3/2/1/computed"),
    )
    note(_TREE_LEGEND)
    if (saved := saved_bytes(nodes)) is not None:
        note(f"saved by sharing: {size(saved)}" if saved else "saved by sharing: nothing yet")
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
        size(stats.flat_bytes) if stats.num_versions else None,
        None if rates is None else " / ".join(f"{rate:.0%}" for rate in rates.values()),
    )


def _size(num_bytes: int | None) -> str | None:
    return None if num_bytes is None else size(num_bytes)


def tree_as_json(base: str, nodes: Sequence[DomainStats]) -> Any:
    """A tree as JSON types, with hit rates and savings worked out."""
    return {
        "base": base,
        "saved_bytes": saved_bytes(nodes),
        "nodes": [{**to_json(stats), "hit_rates": hit_rates(stats)} for stats in nodes],
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
                _a_model(stats),
                None if stats.counted_tokens is None else _rounded(stats.counted_tokens),
                stats.domain.table_version[:12] or None,
                stats.commit_time,
            )
            for stats in nodes
        ),
        whole=("table", "bytes"),
    )
    note(_STATS_LEGEND)
    _note_rolled_back(nodes)


def _rounded(count: float) -> str:
    """A count as people read it, such as `37.6M`."""
    for unit, divisor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= divisor:
            return f"{count / divisor:.1f}{unit}"
    return f"{count:.0f}"


def _a_model(stats: DomainStats) -> str | None:
    """What one of its models takes beside the table, on average."""
    if not stats.num_versions or stats.version_bytes is None:
        return None
    return size(stats.version_bytes / stats.num_versions)


def update_plan(changes: Sequence[DomainChange], reasons: Mapping[str, str]) -> None:
    """What an update changes, on stdout, and why it leaves other nodes as they are."""
    if changes:
        _changes_table(changes)
    for path, reason in reasons.items():
        note(f"{path} stays as it is: {reason}")


def _changes_table(changes: Sequence[DomainChange]) -> None:
    print_table(
        ("domain", "n-grams", "in", "moved up", "out", "later", "rows", "coverage"),
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
        whole=("coverage",),
    )
    note(_CHANGES_LEGEND)
