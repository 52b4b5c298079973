"""AdapterHub's bottleneck adapters saved as safetensors, and its prediction heads.

Follows `adapters` 1.3 (`BnConfig`, `Adapter`, `PredictionHead`). Everything else of AdapterHub
(parallel, compacter, gating, invertible, prefix …) is refused by the option that switches it on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from services.common.adapter_format.container import Limits
from services.common.adapter_format.modules import ModuleNames, module_names
from services.common.adapter_format.options import Options, as_number
from services.common.adapter_format.reader import Reader
from services.common.adapter_format.spec import (
    Bottleneck,
    Dense,
    Head,
    Reads,
    Site,
    Task,
)
from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument

ACTIVATIONS = frozenset(
    {
        "relu", "gelu", "gelu_python", "gelu_new", "gelu_pytorch_tanh", "gelu_accurate",
        "gelu_fast", "gelu_python_tanh", "quick_gelu", "swish", "silu", "tanh", "sigmoid", "mish",
        "leakyrelu", "leaky_relu", "relu2", "relu6", "linear",
    }
)  # fmt: skip

_OUTER = frozenset({"config", "hidden_size", "model_type", "name"})
_OUTER_HARMLESS = frozenset({"model_class", "model_name", "version", "config_id"})
_USED = frozenset(
    {
        "mh_adapter", "output_adapter", "reduction_factor", "non_linearity", "original_ln_before",
        "original_ln_after", "ln_before", "ln_after", "scaling", "residual_before_ln",
        "adapter_residual_before_ln", "leave_out",
    }
)  # fmt: skip
_HARMLESS = frozenset(
    {
        "init_weights", "init_weights_seed", "dropout", "stochastic_depth", "phm_dim", "phm_rank",
        "factorized_phm_W", "shared_W_phm", "shared_phm_rule", "factorized_phm_rule", "phm_c_init",
        "phm_init_range", "learn_phm", "hypercomplex_nonlinearity", "phm_bias",
        "inv_adapter_reduction_factor",
    }
)  # fmt: skip
_OFF: dict[str, tuple[Any, ...]] = {
    "is_parallel": (False,),
    "use_gating": (False,),
    "inv_adapter": (None,),
    "cross_adapter": (False,),
    "phm_layer": (False,),
    "architecture": (None,),
}
_HEAD_USED = frozenset(
    {"head_type", "num_labels", "layers", "activation_function", "use_pooler", "bias"}
)
_HEAD_HARMLESS = frozenset({"label2id", "dropout_prob"})
_HEAD_TASKS = {
    "classification": (Task.SEQUENCE_CLASSIFICATION, Task.REGRESSION),
    "multilabel_classification": (Task.MULTI_LABEL_CLASSIFICATION,),
    "tagging": (Task.TOKEN_CLASSIFICATION,),
}
_MAX_HEAD_LAYERS = 8


def read_hub(
    config: Mapping[str, Any], reader: Reader, base: BaseConfig, limits: Limits
) -> list[Bottleneck]:
    """The bottleneck adapters of an adapter_config.json.

    Raises:
        InvalidArgument: An option is unsupported or wrong, a tensor is missing or misshapen.
    """
    name, options = _inner("adapter_config", config, base)
    options.check_known(_USED, _HARMLESS, _OFF)
    names = module_names(base)
    prefix = names.prefix_of(list(reader.tensors))
    chosen = [
        site
        for site, key in (
            (Site.ATTENTION_OUTPUT, "mh_adapter"),
            (Site.FFN_OUTPUT, "output_adapter"),
        )
        if options.flag(key, False)
    ]
    left_out = options.get("leave_out") or []
    if not isinstance(left_out, list) or not all(type(layer) is int for layer in left_out):
        raise InvalidArgument(f"{options.field}.leave_out", "must be layer numbers")
    found = [
        _bottleneck(
            options, reader, base, limits, (layer, site), _stem(names, prefix, layer, site, name)
        )
        for layer in range(base.num_layers)
        if layer not in left_out
        for site in chosen
    ]
    if not found:
        raise InvalidArgument(f"{options.field}.output_adapter", "the adapter is in no layer")
    return found


def _stem(names: ModuleNames, prefix: str, layer: int, site: Site, name: str) -> str:
    return f"{prefix}{names.bottlenecks[layer, site]}.{name}"


def _inner(field: str, config: Mapping[str, Any], base: BaseConfig) -> tuple[str, Options]:
    """The adapter's (or head's) name, and the configuration inside the file."""
    outer = Options(field, config)
    outer.check_known(_OUTER, _OUTER_HARMLESS, {})
    if outer.get("hidden_size") != base.hidden_size:
        raise InvalidArgument(
            f"{field}.hidden_size",
            f"is {outer.get('hidden_size')!r}, this base's is {base.hidden_size}",
        )
    if outer.get("model_type") != base.architecture:
        raise InvalidArgument(
            f"{field}.model_type",
            f"is {outer.get('model_type')!r}, this base is {base.architecture}",
        )
    name = outer.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{field}.name", "must be the adapter's name")
    inner = outer.get("config")
    if not isinstance(inner, dict):
        raise InvalidArgument(f"{field}.config", "must be the whole configuration, not its name")
    return name, Options(f"{field}.config", inner)


def _bottleneck(
    options: Options,
    reader: Reader,
    base: BaseConfig,
    limits: Limits,
    where: tuple[int, Site],
    stem: str,
) -> Bottleneck:
    layer, site = where
    hidden = base.hidden_size
    size = _size(options, layer, hidden, limits)
    has_norm = options.flag("ln_before", False)
    down = f"{stem}.adapter_down.{1 if has_norm else 0}"
    original_ln_before = options.flag("original_ln_before", False)
    return Bottleneck(
        layer=layer,
        site=site,
        size=size,
        activation=_activation(options, "non_linearity"),
        original_ln_before=original_ln_before,
        original_ln_after=options.flag("original_ln_after", True),
        residual=_residual(options, original_ln_before),
        inner_residual_first=options.flag("adapter_residual_before_ln", False),
        down=reader.take(f"{down}.weight", size, hidden),
        down_bias=reader.take(f"{down}.bias", size),
        up=reader.take(f"{stem}.adapter_up.weight", hidden, size),
        up_bias=reader.take(f"{stem}.adapter_up.bias", hidden),
        scaling=_scaling(options, reader, limits, stem, hidden),
        norm_before=_norm_before(reader, stem, hidden) if has_norm else None,
        norm_after=(
            reader.take(f"{stem}.adapter_norm_after.weight", hidden),
            reader.take(f"{stem}.adapter_norm_after.bias", hidden),
        )
        if options.flag("ln_after", False)
        else None,
    )


def _size(options: Options, layer: int, hidden: int, limits: Limits) -> int:
    field = f"{options.field}.reduction_factor"
    factor = options.get("reduction_factor")
    if isinstance(factor, dict):
        factor = factor.get(str(layer), factor.get("default"))
    number = as_number(field, factor)
    if number <= 0:
        raise InvalidArgument(field, "must be above 0")
    size = max(1, int(hidden // number))
    if size > limits.max_bottleneck:
        raise InvalidArgument(
            field, f"makes a bottleneck of {size}, at most {limits.max_bottleneck} is served"
        )
    return size


def _activation(options: Options, key: str) -> str:
    value = options.get(key)
    name = value.lower() if isinstance(value, str) else ""
    if name not in ACTIVATIONS:
        raise options.refuse(key, f"{value!r} is not supported")
    return name


def _residual(options: Options, original_ln_before: bool) -> str:
    value = options.get("residual_before_ln", True)
    if value == "post_add" and original_ln_before:
        return "post_add"
    if not isinstance(value, bool):
        raise options.refuse("residual_before_ln", f"{value!r} is not supported here")
    return "before_norm" if value else "after_norm"


def _scaling(
    options: Options, reader: Reader, limits: Limits, stem: str, hidden: int
) -> float | str:
    value = options.get("scaling", 1.0)
    if value == "learned":
        return reader.take(f"{stem}.scaling", 1)
    if value == "channel":
        return reader.take(f"{stem}.scaling", hidden)
    field = f"{options.field}.scaling"
    scale = as_number(field, value)
    if abs(scale) > limits.max_scale:
        raise InvalidArgument(field, f"is {scale:g}, at most {limits.max_scale:g} is served")
    return scale


def _norm_before(reader: Reader, stem: str, hidden: int) -> tuple[str, str]:
    """The norm is one module under two names; a container may hold either or both."""
    taken = []
    for kind in ("weight", "bias"):
        names = [f"{stem}.adapter_norm_before.{kind}", f"{stem}.adapter_down.0.{kind}"]
        taken.append(reader.take_first(names, hidden))
        if all(name in reader.tensors for name in names):
            reader.take(names[1], hidden)
            first, second = map(reader.tensors.array, names)
            if not (first == second).all():
                raise InvalidArgument(f"tensors[{names[1]}]", f"differs from {names[0]}")
    return taken[0], taken[1]


def read_hub_head(
    config: Mapping[str, Any] | None, reader: Reader, base: BaseConfig, task: Task, num_labels: int
) -> Head:
    """The prediction head of a head_config.json.

    Raises:
        InvalidArgument: There is none, or one that is unsupported, for another task or misshapen.
    """
    if config is None:
        raise InvalidArgument("head_config", f"{task} needs the head's head_config.json")
    name, options = _inner("head_config", config, base)
    options.check_known(_HEAD_USED, _HEAD_HARMLESS, {})
    head_type = options.text("head_type", "", _HEAD_TASKS)
    if task not in _HEAD_TASKS[head_type]:
        raise InvalidArgument("task", f"{task}, but the head is of type {head_type}")
    found = options.count("num_labels", 2)
    if found != num_labels:
        raise InvalidArgument("labels", f"{num_labels} labels, but the head has {found}")
    reads = Reads.FIRST
    if head_type == "tagging":
        reads = Reads.TOKENS
    elif options.flag("use_pooler", False):
        if not module_names(base).has_pooler:
            raise options.refuse("use_pooler", f"{base.architecture} has no pooler")
        reads = Reads.POOLED
    return Head(
        reads, _head_layers(options, reader, name, base.hidden_size, num_labels), num_labels
    )


def _head_layers(
    options: Options, reader: Reader, name: str, hidden: int, num_labels: int
) -> tuple[Dense, ...]:
    count = options.count("layers", 1)
    if count > _MAX_HEAD_LAYERS:
        raise InvalidArgument(f"{options.field}.layers", f"at most {_MAX_HEAD_LAYERS} are served")
    # `adapters` builds a Sequential: dropout, linear and, between layers, the activation.
    has_activation = bool(options.get("activation_function"))
    activation = _activation(options, "activation_function") if has_activation else "linear"
    step = 3 if has_activation else 2
    has_bias = options.flag("bias", True)
    layers = []
    for depth in range(count):
        is_last = depth == count - 1
        stem = f"heads.{name}.{depth * step + 1}"
        width = num_labels if is_last else hidden
        bias = reader.take(f"{stem}.bias", width) if has_bias or not is_last else None
        weight = reader.take(f"{stem}.weight", width, hidden)
        layers.append(Dense(weight, bias, "linear" if is_last else activation))
    return tuple(layers)
