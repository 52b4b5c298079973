"""Pages of named things, in the order of their names.

Knows names only. A page token is the last name of the page before, so that pages neither repeat
nor skip what stays while other things come and go.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from services.common.ids import check_name

DEFAULT_SIZE = 100
MAX_SIZE = 1000


def page(names: Iterable[str], page_size: int, page_token: str) -> tuple[list[str], str]:
    """The names of one page, and the next page's token (empty on the last).

    Raises:
        InvalidArgument: A token that no page gave.
    """
    size = min(page_size or DEFAULT_SIZE, MAX_SIZE)
    ordered = sorted(names)
    start = bisect_right(ordered, check_name("page_token", page_token)) if page_token else 0
    chosen = ordered[start : start + size]
    return chosen, chosen[-1] if start + size < len(ordered) else ""
