"""A base's pooler with an adapter merged into it.

The pooler reads one token of each row, so a merged copy costs less than machinery of its own. Only
adapters made with `all-linear` (or naming `pooler.dense`) have one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from services.common.adapter_format import AdmittedVersion, BiasKind

FloatArray = NDArray[np.float32]


def own_pooler(
    version: AdmittedVersion, of_base: Callable[[str], FloatArray]
) -> tuple[FloatArray, FloatArray]:
    """float32 weight `[hidden, hidden]` and bias `[hidden]` of the version's pooler."""
    weight = of_base("pooler.dense.weight").astype(np.float32, copy=True)
    bias = of_base("pooler.dense.bias").astype(np.float32, copy=True)
    array = version.tensors.array
    for change in version.biases:
        if change.kind is BiasKind.POOLER:
            bias = array(change.tensor)
    for lora in version.loras:
        if lora.place is None:
            weight = weight + np.float32(lora.scale) * (array(lora.b) @ array(lora.a))
    for scaling in version.scalings:
        if scaling.place is None and scaling.of_input:
            weight = weight * array(scaling.vector).reshape(1, -1)
        elif scaling.place is None:
            vector = array(scaling.vector).reshape(-1)
            weight, bias = weight * vector[:, None], bias * vector
    return weight, bias
