"""Single tensors of a base's checkpoint, for versions that replace or merge with them.

Reads float32 copies on demand, through the encoder's own reader of checkpoints; keeps nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from services.common.base_config import BaseConfig
from services.executor.models.checkpoint import open_checkpoint

_PREFIXES = ("", "bert.", "roberta.", "distilbert.")


class BaseTensors:
    """Reads tensors of a checkpoint by their names without the model's prefix.

    Args:
        directory: Hugging Face directory.
        config: Sizes of the base.
    """

    def __init__(self, directory: Path, config: BaseConfig) -> None:
        self._directory = directory
        self._config = config

    def __call__(self, name: str) -> NDArray[np.float32]:
        """The tensor, float32.

        Raises:
            InvalidArgument: The checkpoint has none of that name, or one misshapen.
            FailedPrecondition: The checkpoint is gone.
        """
        hidden = self._config.hidden_size
        is_inner = name.endswith(("intermediate.dense.bias", "ffn.lin1.bias"))
        width = self._config.intermediate_size if is_inner else hidden
        shape = (hidden, hidden) if name.endswith(".weight") else (width,)
        cpu = torch.device("cpu")
        with open_checkpoint(self._directory, dtype=torch.float32, device=cpu) as checkpoint:
            stored = next((p + name for p in _PREFIXES if p + name in checkpoint), name)
            array: NDArray[np.float32] = checkpoint.take(stored, shape).numpy()
        return array
