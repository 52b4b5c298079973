"""`hmi train`: fits one tenant's adapter and head to labelled texts, locally, without a server.

Writes a Hugging Face PEFT directory. Knows nothing of tenants, versions or serving: what it writes
is pushed like any other directory. The run itself is `services.executor.train.run`, which imports
torch; what is here does not, so that a mistaken option is answered at once.
"""

from services.executor.miss_policy import MissPolicy
from services.executor.train.options import (
    Adapter,
    Precision,
    Progress,
    Task,
    TrainOptions,
    TrainReport,
)
from services.executor.train.progress import EpochLines, ProgressBar

__all__ = [
    "Adapter",
    "EpochLines",
    "MissPolicy",
    "Precision",
    "Progress",
    "ProgressBar",
    "Task",
    "TrainOptions",
    "TrainReport",
]
