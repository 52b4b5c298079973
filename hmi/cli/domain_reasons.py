"""Why a domain has the rows it has: what came of a corpus, and why an update changes nothing.

Knows what a gateway tells of nodes and plans; does not know how rows are chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from hmi.cli.domain_options import named
from hmi.client import DomainChange, DomainStats, Tenant
from services.common.ngram_counts import NgramCounts

# The knowledge store's, which no RPC tells.
_DEFAULT_MIN_TENANTS = 3
_SHARES = "`hmi tenants set NAME --shares-counts`"


def about_rows(stats: DomainStats, counts: NgramCounts | None) -> str:
    """What became of a new domain's corpus, in a line.

    Args:
        counts: The corpus's; None: there was none.
    """
    unigrams, bigrams, trigrams = (*stats.num_entries, 0, 0, 0)[:3]
    if unigrams or bigrams or trigrams:
        return f"rows made: {unigrams} of 1-grams, {bigrams} of 2-grams, {trigrams} of 3-grams"
    if counts is None:
        return (
            "no row: without --corpus it answers from the domains above, and traffic fills it at "
            "an update"
        )
    if stats.domain.alpha < 1 and not np.any(counts.counts > 1):
        return (
            f"no row: none of the corpus's {len(counts.keys)} n-grams came twice, and what came "
            "once gets a row only with --alpha 1; it answers from the domains above"
        )
    return (
        "no row: the domains above have one already for all of the corpus that --alpha and "
        "--budget ask for; it answers from them"
    )


def unchanged(nodes: Iterable[DomainStats], changes: Sequence[DomainChange]) -> dict[str, str]:
    """Why an update leaves nodes as they are, by path; those that it changes are not in it.

    Args:
        nodes: Those that the update is of.
        changes: Its plan.
    """
    moved = {change.path for change in changes if change.num_added or change.num_removed}
    return {
        named(stats.domain.path): _reason(
            stats, [one for one in changes if one.path == stats.domain.path]
        )
        for stats in nodes
        if stats.domain.path not in moved
    }


def too_few_share(tenants: Iterable[Tenant]) -> str | None:
    """That traffic cannot teach a shared table yet, whatever it was; None if it can."""
    num_sharing = sum(tenant.shares_counts for tenant in tenants)
    if num_sharing >= _DEFAULT_MIN_TENANTS:
        return None
    return (
        f"traffic teaches a shared table only what {_DEFAULT_MIN_TENANTS} tenants sent that share "
        f"their counts, unless the deployment says otherwise: {num_sharing} do ({_SHARES})"
    )


def _reason(stats: DomainStats, own: Sequence[DomainChange]) -> str:
    domain = stats.domain
    if not domain.table_version:
        return "its first table is not made yet"
    reasons = []
    if num := sum(change.num_over_budget for change in own):
        reasons.append(
            f"{num} rows wanted are beyond its budget (`hmi domains set {named(domain.path)} "
            "--budget`)"
        )
    if num := sum(change.num_deferred for change in own):
        reasons.append(f"{num} rows wait, as one update may change only a share of a table")
    if num := sum(change.num_withheld for change in own):
        reasons.append(f"{num} n-grams were sent by too few tenants that share their counts")
    if not reasons and not stats.counted_tokens:
        reasons.append("nothing is counted for it")
    elif not reasons:
        reasons.append("what is counted wants no row that it or a domain above lacks")
    return "; ".join(reasons)
