"""Whether a version leaves the layers below a base's split alone: there, tables are read instead.

Knows what a version changes where; does not know tables.
"""

from __future__ import annotations

from services.common.adapter_format.spec import AdapterType, AdmittedVersion, BiasKind
from services.common.errors import InvalidArgument

_REASON = "BELOW_SPLIT"


def check_above_split(version: AdmittedVersion, split_layer: int, num_layers: int) -> None:
    """Refuse a version that changes what is looked up: every model of a domain reads one table.

    Args:
        version: What was admitted for the unsplit base.
        split_layer: Layers below this one are looked up; 0 on a base that is not split.
        num_layers: The base's layers.

    Raises:
        InvalidArgument: Names the layers, and the option that leaves them out.
    """
    if not split_layer:
        return
    if any(bias.kind is BiasKind.EMBEDDING_NORM for bias in version.biases):
        raise InvalidArgument(
            "adapter_config.bias",
            f"it trains the embeddings' LayerNorm, and layers below {split_layer} of this base are "
            "looked up in tables, not computed: train with bias='none'",
            reason=_REASON,
        )
    below = sorted(layer for layer in _changed_layers(version) if layer < split_layer)
    if not below:
        return
    field, advice = _advice(version, split_layer, num_layers)
    layers = ", ".join(map(str, below))
    raise InvalidArgument(
        field,
        f"the adapter changes layers {layers}, and layers below {split_layer} of this base are "
        f"looked up in tables, not computed: {advice} (`hmi train --base` does), or push it to the "
        "unsplit base",
        reason=_REASON,
    )


def _changed_layers(version: AdmittedVersion) -> set[int]:
    places = [lora.place for lora in version.loras]
    places += [scaling.place for scaling in version.scalings]
    places += [bias.place for bias in version.biases]
    layers = {place.layer for place in places if place is not None}
    return layers | {bottleneck.layer for bottleneck in version.bottlenecks}


def _advice(version: AdmittedVersion, split_layer: int, num_layers: int) -> tuple[str, str]:
    """The field to name and what to do about it."""
    if version.adapter_type is AdapterType.BOTTLENECK:
        left_out = list(range(split_layer))
        return "adapter_config.config.leave_out", f"train with leave_out={left_out}"
    if version.adapter_type is AdapterType.IA3:
        return (
            "adapter_config.target_modules",
            f"name modules of layers {split_layer} to {num_layers - 1} alone in target_modules",
        )
    kept = list(range(split_layer, num_layers))
    return "adapter_config.layers_to_transform", f"train with layers_to_transform={kept}"
