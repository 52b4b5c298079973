"""`hmi train`: fits one tenant's adapter and head to labelled texts, locally, without a server.

Writes a Hugging Face PEFT directory. Knows nothing of tenants, versions or serving: what it writes
is pushed like any other directory.
"""

from services.executor.train.options import (
    Adapter,
    Precision,
    Progress,
    TrainOptions,
    TrainReport,
)
from services.executor.train.progress import ProgressBar
from services.executor.train.run import train

__all__ = [
    "Adapter",
    "Precision",
    "Progress",
    "ProgressBar",
    "TrainOptions",
    "TrainReport",
    "train",
]
