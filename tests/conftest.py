"""How the tests run in several processes: one thread each, and the long files first.

Knows what tests say of themselves; no list of files is kept here.
"""

from __future__ import annotations

import os

import pytest

# For this process and those that tests start: they share the cores, and threads of one would only
# wait for each other. Read when torch is imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a test that may take longer than others begin first, the longest foremost.

    A file stays in one process (`--dist loadfile`), so that a long one that begins last would be
    waited for by all others. Within a file nothing moves.
    """
    longest: dict[str, float] = {}
    for item in items:
        file = item.nodeid.partition("::")[0]
        longest[file] = max(longest.get(file, 0.0), _timeout_s(item))
    items.sort(key=lambda item: -longest[item.nodeid.partition("::")[0]])


def _timeout_s(item: pytest.Item) -> float:
    """What its `timeout` mark allows; 0 for the usual."""
    mark = item.get_closest_marker("timeout")
    return float(mark.args[0]) if mark is not None else 0.0
