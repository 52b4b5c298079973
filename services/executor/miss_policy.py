"""What a domain says of n-grams that its tables lack: serving and training both go by it.

Knows the policies alone; does not know tables, nor torch, so that options are read without it.
"""

from __future__ import annotations

from enum import StrEnum


class MissPolicy(StrEnum):
    """What stands for an n-gram that the tables lack; the values are those of the manifest.

    `BACKOFF`: a shorter n-gram's row; rows of any encoder on the path, of any dtype, count.
    `COMPUTE`: its own row, computed. A table's row counts only if it is what this executor would
    compute: made by the leaf's encoder in the executor's own dtype.
    """

    BACKOFF = "backoff"
    COMPUTE = "compute"
