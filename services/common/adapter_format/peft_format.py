"""PEFT's LoRA and IA3 directories: what their options and tensors mean for a base.

Follows PEFT 0.21 (`peft.tuners.lora`, `peft.tuners.ia3`). Options that change the arithmetic in
ways not served are refused by name; options of training alone are let through.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from services.common.adapter_format.container import Limits
from services.common.adapter_format.modules import (
    EMBEDDING_NORM,
    POOLER,
    ModuleNames,
    module_names,
    sizes,
)
from services.common.adapter_format.options import UNSUPPORTED, Options, as_number
from services.common.adapter_format.patterns import Patterns, Targets
from services.common.adapter_format.reader import Reader
from services.common.adapter_format.spec import Bias, BiasKind, Lora, Place, Scaling
from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument

MODEL = "base_model.model."

_COMMON = frozenset({"peft_type", "target_modules", "exclude_modules", "modules_to_save"})
_HARMLESS = frozenset(
    {
        "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
        "peft_version",
    }
)  # fmt: skip
_LORA_USED = _COMMON | {
    "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "init_lora_weights",
    "layers_to_transform", "layers_pattern",
}  # fmt: skip
_LORA_HARMLESS = _HARMLESS | {
    "lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "qalora_group_size", "megatron_core", "runtime_config",
}  # fmt: skip
_LORA_OFF: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False, None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "ensure_weight_tying": (False, None),
    **{
        key: (None, {}, [])
        for key in (
            "trainable_token_indices", "megatron_config", "layer_replication", "target_parameters",
            "alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config",
            "monteclora_config", "velora_config",
        )
    },
}  # fmt: skip
_IA3_USED = _COMMON | {"feedforward_modules"}
_IA3_HARMLESS = _HARMLESS | {"init_ia3_weights"}
_IA3_OFF: dict[str, tuple[Any, ...]] = {"fan_in_fan_out": (False, None)}

# Initialisations that leave the base as it is. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change its
# weights, so that their A and B are no addition to the base that is served.
_PURE_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "true", "false")


@dataclass(slots=True)
class PeftParts:
    """What a PEFT configuration adds to a base."""

    loras: list[Lora] = field(default_factory=list)
    scalings: list[Scaling] = field(default_factory=list)
    biases: list[Bias] = field(default_factory=list)

    @property
    def change_pooler(self) -> bool:
        """Whether the base's pooler is not used as it is."""
        return (
            any(lora.place is None for lora in self.loras)
            or any(scaling.place is None for scaling in self.scalings)
            or any(bias.kind is BiasKind.POOLER for bias in self.biases)
        )


def read_peft(
    config: Mapping[str, Any], reader: Reader, base: BaseConfig, limits: Limits
) -> PeftParts:
    """The parts inside the base; the head's tensors are left to `heads`.

    Raises:
        InvalidArgument: An option is unsupported or wrong, a tensor is missing or misshapen.
    """
    options = Options("adapter_config", config)
    peft_type = options.get("peft_type")
    if peft_type == "LORA":
        options.check_known(_LORA_USED, _LORA_HARMLESS, _LORA_OFF)
        return _LoraReader(options, reader, base, limits).read()
    if peft_type == "IA3":
        options.check_known(_IA3_USED, _IA3_HARMLESS, _IA3_OFF)
        return _read_ia3(options, reader, base)
    raise InvalidArgument(
        "adapter_config.peft_type",
        f"{peft_type!r} is not supported; LORA and IA3 are",
        reason=UNSUPPORTED,
    )


def _targets(
    options: Options, patterns: Patterns, reader: Reader, names: ModuleNames, suffix: str
) -> Iterator[tuple[str, str, Place | None]]:
    """Full name, tensor stem and place of each module chosen, the pooler (None) last.

    Task models differ in whether they have a pooler, so it counts only if its tensors are there.
    """
    targets = Targets(options, patterns)
    prefix = names.prefix_of([name.removeprefix(MODEL) for name in reader.tensors])
    found = False
    for module, place in names.maps.items():
        if targets.chooses(prefix + module):
            found = True
            yield prefix + module, MODEL + prefix + module, place
    if not found:
        raise InvalidArgument(
            f"{options.field}.target_modules", "names no linear map of this base's layers"
        )
    pooler = prefix + POOLER
    if (
        f"{MODEL}{pooler}{suffix}" in reader.tensors
        and "pooler" not in options.texts("modules_to_save")
        and targets.chooses(pooler)
    ):
        yield pooler, MODEL + pooler, None


class _LoraReader:
    def __init__(self, options: Options, reader: Reader, base: BaseConfig, limits: Limits) -> None:
        self._options = options
        self._reader = reader
        self._base = base
        self._limits = limits
        self._names = module_names(base)
        self._patterns = Patterns()
        self._parts = PeftParts()

    def read(self) -> PeftParts:
        options = self._options
        init = options.get("init_lora_weights")
        if init not in _PURE_INITS:
            raise options.refuse("init_lora_weights", f"{init!r} changes the base's own weights")
        use_bias = options.text("bias", "none", ("none", "all", "lora_only"))
        for module, stem, place in _targets(
            options, self._patterns, self._reader, self._names, ".lora_A.weight"
        ):
            self._parts.loras.append(self._lora(module, stem, place))
        if use_bias != "none":
            self._read_biases(everywhere=use_bias == "all")
        return self._parts

    def _lora(self, module: str, stem: str, place: Place | None) -> Lora:
        options = self._options
        field_, rank = self._patterns.value(options, "rank_pattern", "r", 8, module)
        if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
            raise InvalidArgument(field_, "a rank is an integer of at least 1")
        if rank > self._limits.max_rank:
            raise InvalidArgument(field_, f"rank {rank}, at most {self._limits.max_rank} is served")
        alpha_field, alpha = self._patterns.value(options, "alpha_pattern", "lora_alpha", 8, module)
        divisor = math.sqrt(rank) if options.flag("use_rslora", False) else rank
        scale = as_number(alpha_field, alpha) / divisor
        if abs(scale) > self._limits.max_scale:
            raise InvalidArgument(
                alpha_field,
                f"makes a scale of {scale:g}, at most {self._limits.max_scale:g} is served",
            )
        num_in, num_out = sizes(self._base, place)
        return Lora(
            place=place,
            rank=rank,
            scale=scale,
            a=self._reader.take(f"{stem}.lora_A.weight", rank, num_in),
            b=self._reader.take(f"{stem}.lora_B.weight", num_out, rank),
        )

    def _read_biases(self, *, everywhere: bool) -> None:
        prefix = self._names.prefix_of([n.removeprefix(MODEL) for n in self._reader.tensors])
        adapted = {lora.place for lora in self._parts.loras}
        for module, place in self._names.maps.items():
            if everywhere or place in adapted:
                self._take_bias(BiasKind.LINEAR, prefix, module, place)
        self._take_bias(BiasKind.POOLER, prefix, POOLER, None)
        if everywhere:
            for module, place in self._names.norms.items():
                self._take_bias(BiasKind.NORM, prefix, module, place)
            self._take_bias(BiasKind.EMBEDDING_NORM, prefix, EMBEDDING_NORM, None)
            for name in self._reader.rest:
                # PEFT saves, beside a saved module's bias, the bias before and after training.
                if ".original_module." in name or ".modules_to_save." in name:
                    self._reader.drop(name)

    def _take_bias(self, kind: BiasKind, prefix: str, module: str, place: Place | None) -> None:
        names = [f"{MODEL}{prefix}{module}{middle}.bias" for middle in (".base_layer", "")]
        if not any(name in self._reader.rest for name in names):
            return  # an adapter may save fewer biases than its configuration allows
        width = sizes(self._base, place)[1] if kind is BiasKind.LINEAR else self._base.hidden_size
        tensor = self._reader.take_first(names, width)
        self._parts.biases.append(Bias(kind, place, tensor, f"{module}.bias"))


def _read_ia3(options: Options, reader: Reader, base: BaseConfig) -> PeftParts:
    parts = PeftParts()
    patterns = Patterns()
    feedforward = _feedforward(options)
    for module, stem, place in _targets(options, patterns, reader, module_names(base), ".ia3_l"):
        of_input = (
            patterns.fullmatch("adapter_config.feedforward_modules", feedforward, module)
            is not None
            if isinstance(feedforward, str)
            else any(module == name or module.endswith(name) for name in feedforward)
        )
        if of_input and place is not None and place.site == "attention_input":
            raise options.refuse(
                "feedforward_modules", f"{module} reads what query, key and value share"
            )
        num_in, num_out = sizes(base, place)
        shape = (1, num_in) if of_input else (num_out, 1)
        parts.scalings.append(Scaling(place, reader.take(f"{stem}.ia3_l", *shape), of_input))
    return parts


def _feedforward(options: Options) -> list[str] | str:
    value = options.get("feedforward_modules")
    return value if isinstance(value, str) else options.texts("feedforward_modules")
