"""Where an executor can be made to end, as a crash would; see `services.common.failpoints`.

Knows the points' names only. The plan is `HMI_FAILPOINTS`.
"""

from __future__ import annotations

from services.common import failpoints
from services.common.failpoints import EXIT_STATUS, Reach, off

__all__ = ["EXIT_STATUS", "POINTS", "Reach", "arm", "off"]

_OF_ITEMS = ("after_submit", "before_forward", "after_forward", "before_event")
_OF_WORK = (
    "work_leased",
    "rows_computed",
    "segment_written",
    "before_complete",
    "after_complete",
)
_OF_TABLES = ("before_swap", "after_swap")
POINTS = (*_OF_ITEMS, *_OF_WORK, *_OF_TABLES)


def arm(plan: str) -> Reach:
    """The function to call at points: `off` if `plan` is empty.

    Raises:
        ValueError: `plan` names no such point or action.
    """
    return failpoints.arm(plan, POINTS)
