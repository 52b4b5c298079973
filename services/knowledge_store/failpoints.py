"""Where a knowledge store can be made to end, as a crash would; see `services.common.failpoints`.

Knows the points' names only. The plan is `HMI_STORE_FAILPOINTS`.
"""

from __future__ import annotations

from services.common import failpoints
from services.common.failpoints import EXIT_STATUS, Reach, off

__all__ = ["EXIT_STATUS", "OF_UPDATES", "POINTS", "Reach", "arm", "off"]

OF_UPDATES = ("after_plan", "after_lease", "after_written", "before_commit", "after_commit")
_OF_DELETION = ("before_delete", "after_delete")
POINTS = (*OF_UPDATES, *_OF_DELETION)


def arm(plan: str) -> Reach:
    """The function to call at points: `off` if `plan` is empty.

    Raises:
        ValueError: `plan` names no such point or action.
    """
    return failpoints.arm(plan, POINTS)
