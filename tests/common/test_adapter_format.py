"""What is admitted as a version, and the field that is named when it is not."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from services.common.adapter_format import AdapterType, Limits, Reads, Site, Task, admit
from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument, ResourceExhausted
from tests.common.blobs import (
    BASE,
    CLASSIFIER,
    HIDDEN,
    INNER,
    LAYERS,
    LORA_CONFIG,
    QUERY_A,
    STEM,
    blob,
    lora_tensors,
)


def refused_field(data: bytes, **limits: int) -> str:
    with pytest.raises(InvalidArgument) as caught:
        admit(data, BASE, limits=Limits(**limits))
    return caught.value.field


def config(**changes: Any) -> dict[str, Any]:
    return {**LORA_CONFIG, **changes}


def test_a_lora_version_is_described_for_gateway_and_executor() -> None:
    version = admit(blob(), BASE)
    assert version.task is Task.SEQUENCE_CLASSIFICATION
    assert version.labels == ("a", "b", "c")
    assert version.adapter_type is AdapterType.LORA
    assert version.head.reads is Reads.POOLED
    assert version.head.num_outputs == 3
    assert len(version.loras) == 2 * LAYERS
    assert {lora.scale for lora in version.loras} == {2.0}
    places = {lora.place for lora in version.loras}
    assert {(p.layer, p.site, p.part) for p in places if p} == {
        (layer, Site.ATTENTION_INPUT, part) for layer in range(LAYERS) for part in (0, 2)
    }


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("use_qalora", True),
        ("fan_in_fan_out", True),
        ("trainable_token_indices", [1, 2]),
        ("megatron_config", {"a": 1}),
        ("layer_replication", [[0, 1]]),
        ("target_parameters", ["x"]),
        ("alora_invocation_tokens", [1]),
        ("use_bdlora", {"a": 1}),
        ("arrow_config", {"a": 1}),
        ("ensure_weight_tying", True),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("bias", "some"),
        ("an_option_of_next_year", 1),
        ("peft_type", "VERA"),
        ("peft_type", "PROMPT_TUNING"),
        ("peft_type", None),
        ("r", "eight"),
        ("lora_alpha", None),
        ("lora_alpha", 1e300),
        ("lora_alpha", 1e6),
        ("lora_alpha", -1e6),
        ("target_modules", None),
        ("target_modules", ["embeddings"]),
        ("target_modules", "(query"),
        ("layers_to_transform", ["a"]),
        ("use_rslora", 1),
        ("rank_pattern", []),
    ],
)
def test_an_option_that_cannot_be_served_is_refused_by_name(option: str, value: object) -> None:
    if option == "rank_pattern":
        value = ["query"]
    assert refused_field(blob(adapter_config=config(**{option: value}))).startswith(
        f"adapter_config.{option}"
    )


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("init_lora_weights", "gaussian"),
        ("init_lora_weights", True),
        ("init_lora_weights", "eva"),
        ("loftq_config", {}),
        ("lora_dropout", 0.1),
        ("use_dora", False),
        ("megatron_core", "megatron.core"),
        ("layer_replication", None),
        ("task_type", "SEQ_CLS"),
        ("modules_to_save", ["classifier", "score"]),
        ("peft_version", "0.21.2"),
    ],
)
def test_an_option_that_changes_nothing_is_let_through(option: str, value: object) -> None:
    assert admit(blob(adapter_config=config(**{option: value})), BASE)


def test_an_expression_without_end_does_not_hold_the_gateway_up() -> None:
    started = time.monotonic()
    field = refused_field(
        blob(adapter_config=config(target_modules=r"(.|[a-z]|\w)*(.|\w)*(a|.)*!"))
    )
    assert field == "adapter_config.target_modules"
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "pattern",
    ["(" * 490, "query" * 201, "x{99999999999999999999}"],
)
@pytest.mark.parametrize("option", ["target_modules", "exclude_modules", "rank_pattern"])
def test_an_expression_that_is_too_deep_or_too_long_is_refused(option: str, pattern: str) -> None:
    value: Any = {pattern: 4} if option == "rank_pattern" else pattern
    field = refused_field(blob(adapter_config=config(**{option: value})))
    assert field.startswith(f"adapter_config.{option}")


@pytest.mark.parametrize("name", [QUERY_A, QUERY_A.replace("_A", "_B"), CLASSIFIER])
def test_a_missing_tensor_is_named(name: str) -> None:
    tensors = lora_tensors()
    del tensors[name]
    assert refused_field(blob(tensors)) == f"tensors[{name}]"


def test_an_adapter_with_more_layers_than_the_base_is_refused() -> None:
    tensors = lora_tensors()
    extra = f"{STEM}.{LAYERS}.attention.self.query.lora_A.weight"
    tensors[extra] = tensors[QUERY_A]
    assert refused_field(blob(tensors)) == f"tensors[{extra}]"


def test_an_adapter_of_a_wider_base_is_refused_by_the_shape() -> None:
    tensors = {name: np.repeat(t, 2, axis=-1) for name, t in lora_tensors().items()}
    assert refused_field(blob(tensors)).endswith(".shape")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_number_that_is_none_is_refused_in_every_dtype(value: float, dtype: type) -> None:
    tensors = lora_tensors(dtype)
    tensors[QUERY_A][3, -1] = value
    assert refused_field(blob(tensors)) == f"tensors[{QUERY_A}]"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_float_dtype_is_read_as_its_values(dtype: type) -> None:
    tensors = lora_tensors(dtype)
    version = admit(blob(tensors), BASE)
    np.testing.assert_array_equal(
        version.tensors.array(QUERY_A), tensors[QUERY_A].astype(np.float32)
    )


@pytest.mark.parametrize(
    ("meta", "field"),
    [
        ({"labels": ["a", "b"]}, "labels"),
        ({"labels": ["a", "a", "b"]}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": "abc"}, "labels"),
        ({"labels": ["a", "b", ""]}, "labels"),
        ({"task": "poetry"}, "task"),
        ({"task": None}, "task"),
        ({"format": "pickle"}, "format"),
        ({"format": "none", "adapter_config": None}, "task"),
        ({"adapter_config": None}, "adapter_config"),
        ({"head_config": {"a": 1}}, "head_config"),
        ({"pooling": "max"}, "pooling"),
        ({"normalize": "yes"}, "normalize"),
        ({"path": "../../etc"}, "metadata.path"),
        ({"task": "embedding", "labels": [], "pooling": None}, "pooling"),
    ],
)
def test_metadata_that_makes_no_sense_is_refused(meta: dict[str, Any], field: str) -> None:
    assert refused_field(blob(**meta)) == field


def test_limits_on_rank_labels_and_size_are_kept() -> None:
    assert refused_field(blob(), max_rank=3) == "adapter_config.r"
    assert refused_field(blob(), max_labels=2) == "labels"
    assert refused_field(blob(), max_tensors=3) == "blob"
    assert refused_field(blob(), max_header_bytes=100) == "blob"
    with pytest.raises(ResourceExhausted):
        admit(blob(), BASE, limits=Limits(max_bytes=100))


def test_rank_and_alpha_patterns_apply_to_the_modules_they_match() -> None:
    tensors = lora_tensors()
    for name in [n for n in tensors if ".value.lora_" in n]:
        tensors[name] = np.repeat(tensors[name], 2, axis=0 if "lora_A" in name else 1)
    changed = config(rank_pattern={"value": 8}, alpha_pattern={"layer.1.*query": 2})
    version = admit(blob(tensors, adapter_config=changed), BASE)
    found = {(p.layer, p.part): (v.rank, v.scale) for v in version.loras if (p := v.place)}
    assert found == {(0, 0): (4, 2.0), (1, 0): (4, 0.5), (0, 2): (8, 1.0), (1, 2): (8, 1.0)}


def test_ia3_on_what_query_key_and_value_share_is_refused() -> None:
    tensors = {
        f"{STEM}.{layer}.attention.self.query.ia3_l": np.ones((1, HIDDEN), np.float32)
        for layer in range(LAYERS)
    }
    changed = {
        "peft_type": "IA3",
        "target_modules": ["query"],
        "feedforward_modules": ["query"],
    }
    data = blob(tensors, adapter_config=changed, task="embedding", labels=[], pooling="mean")
    assert refused_field(data) == "adapter_config.feedforward_modules"


def hub_config(**changes: Any) -> dict[str, Any]:
    inner = {
        "mh_adapter": False,
        "output_adapter": True,
        "reduction_factor": 4,
        "non_linearity": "relu",
        **changes,
    }
    return {"config": inner, "hidden_size": HIDDEN, "model_type": "bert", "name": "t"}


def hub_tensors() -> dict[str, Any]:
    shapes = {
        "adapter_down.0.weight": (4, HIDDEN),
        "adapter_down.0.bias": (4,),
        "adapter_up.weight": (HIDDEN, 4),
        "adapter_up.bias": (HIDDEN,),
    }
    return {
        f"bert.encoder.layer.{layer}.output.adapters.t.{name}": np.ones(shape, np.float32)
        for layer in range(LAYERS)
        for name, shape in shapes.items()
    }


def hub_blob(adapter_config: dict[str, Any], **meta: Any) -> bytes:
    defaults = {"task": "embedding", "labels": [], "pooling": "mean"}
    return blob(
        hub_tensors(), format="adapterhub", adapter_config=adapter_config, **{**defaults, **meta}
    )


def test_a_bottleneck_version_is_described() -> None:
    version = admit(hub_blob(hub_config()), BASE)
    assert version.adapter_type is AdapterType.BOTTLENECK
    assert [(b.layer, b.site, b.size) for b in version.bottlenecks] == [
        (layer, Site.FFN_OUTPUT, 4) for layer in range(LAYERS)
    ]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("is_parallel", True),
        ("phm_layer", True),
        ("use_gating", True),
        ("inv_adapter", "nice"),
        ("cross_adapter", True),
        ("architecture", "prefix_tuning"),
        ("non_linearity", "prelu"),
        ("residual_before_ln", "post_add"),
        ("reduction_factor", 0),
        ("reduction_factor", {"0": 4}),
        ("reduction_factor", 1e-6),
        ("scaling", "magic"),
        ("scaling", 1e6),
        ("mh_adapter", 1),
        ("output_adapter", False),
        ("an_option_of_next_year", 1),
    ],
)
def test_an_adapterhub_option_that_cannot_be_served_is_refused_by_name(
    option: str, value: object
) -> None:
    data = hub_blob(hub_config(**{option: value}))
    assert refused_field(data) == f"adapter_config.config.{option}"


def test_an_adapterhub_adapter_names_its_base_and_its_head() -> None:
    wide = {**hub_config(), "hidden_size": 2 * HIDDEN}
    assert refused_field(hub_blob(wide)) == "adapter_config.hidden_size"
    other = {**hub_config(), "model_type": "roberta"}
    assert refused_field(hub_blob(other)) == "adapter_config.model_type"
    headless = hub_blob(hub_config(), task="token_classification", labels=["a"], pooling="")
    assert refused_field(headless) == "head_config"
    head = {
        "config": {"head_type": "classification", "num_labels": 2, "layers": 1},
        "hidden_size": HIDDEN,
        "model_type": "bert",
        "name": "t",
    }
    wrong = hub_blob(
        hub_config(), task="token_classification", labels=["a"], pooling="", head_config=head
    )
    assert refused_field(wrong) == "task"
    fewer = hub_blob(
        hub_config(), task="sequence_classification", labels=["a"], pooling="", head_config=head
    )
    assert refused_field(fewer) == "labels"


def test_a_head_cannot_read_a_pooler_where_the_architecture_has_none() -> None:
    distilbert = BaseConfig.from_hf(
        {
            "model_type": "distilbert",
            "dim": HIDDEN,
            "hidden_dim": INNER,
            "n_layers": LAYERS,
            "n_heads": 2,
            "vocab_size": 50,
            "max_position_embeddings": 20,
        }
    )
    tensors = {
        name.replace("bert.encoder.layer", "distilbert.transformer.layer").replace(
            ".output.adapters", ".output_adapters.adapters"
        ): tensor
        for name, tensor in hub_tensors().items()
    }
    head = {
        "config": {"head_type": "classification", "num_labels": 1, "use_pooler": True},
        "hidden_size": HIDDEN,
        "model_type": "distilbert",
        "name": "t",
    }
    data = blob(
        tensors,
        format="adapterhub",
        adapter_config={**hub_config(), "model_type": "distilbert"},
        labels=["a"],
        head_config=head,
    )
    with pytest.raises(InvalidArgument) as caught:
        admit(data, distilbert)
    assert caught.value.field == "head_config.config.use_pooler"


def test_admission_needs_no_torch() -> None:
    code = "import sys, services.common.adapter_format; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert INNER > HIDDEN


@pytest.mark.parametrize(
    "labels",
    [[f"l{i}" for i in range(1025)], [f"{i:03}" + "€" * 197 for i in range(120)]],
    ids=["count", "bytes"],
)
def test_labels_are_bounded_for_every_answer_repeats_them(labels: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        admit(blob(labels=labels), BASE)
    assert caught.value.field == "labels"
    assert "shape" not in caught.value.message
    assert " are served" in caught.value.message or "bytes together" in caught.value.message
