"""The version blob: what may be in it and what it means for a base. No torch."""

from services.common.adapter_format.admission import METADATA_KEY, admit
from services.common.adapter_format.container import Limits, TensorFile
from services.common.adapter_format.spec import (
    AdapterType,
    AdmittedVersion,
    Bias,
    BiasKind,
    Bottleneck,
    Dense,
    Head,
    Lora,
    Place,
    Reads,
    Scaling,
    Site,
    Task,
)

__all__ = [
    "METADATA_KEY", "AdapterType", "AdmittedVersion", "Bias", "BiasKind", "Bottleneck", "Dense",
    "Head", "Limits", "Lora", "Place", "Reads", "Scaling", "Site", "Task", "TensorFile", "admit",
]  # fmt: skip
