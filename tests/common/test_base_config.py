"""config.json of the bases we serve, and of those we do not."""

import json
from pathlib import Path

import pytest

from services.common.base_config import Activation, Architecture, BaseConfig
from services.common.errors import FailedPrecondition, InvalidArgument

BERT = {
    "model_type": "bert",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}
DISTILBERT = {
    "model_type": "distilbert",
    "dim": 768,
    "hidden_dim": 3072,
    "n_layers": 6,
    "n_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}


def refused_field(config: dict[str, object]) -> str:
    with pytest.raises(InvalidArgument) as refusal:
        BaseConfig.from_hf(config)
    return refusal.value.field


def test_bert_with_transformers_defaults() -> None:
    base = BaseConfig.from_hf(BERT)
    assert base.architecture is Architecture.BERT
    assert (base.hidden_size, base.head_size, base.num_layers) == (384, 32, 6)
    assert (base.max_tokens, base.position_start, base.type_vocab_size) == (512, 0, 2)
    assert (base.activation, base.norm_eps) == (Activation.GELU, 1e-12)


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_roberta_positions_start_after_the_padding_token(model_type: str) -> None:
    base = BaseConfig.from_hf(
        BERT | {"model_type": model_type, "max_position_embeddings": 514, "pad_token_id": 1}
    )
    assert (base.position_start, base.max_tokens) == (2, 512)
    assert BaseConfig.from_hf(BERT | {"model_type": model_type}).pad_token_id == 1


def test_distilbert_has_its_own_names_and_no_types() -> None:
    base = BaseConfig.from_hf(DISTILBERT)
    assert (base.hidden_size, base.intermediate_size, base.num_heads) == (768, 3072, 12)
    assert base.type_vocab_size == 0


@pytest.mark.parametrize("model_type", ["gpt2", "modernbert", "albert", None, 7])
def test_other_architectures_are_refused_by_name(model_type: object) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        BaseConfig.from_hf(BERT | {"model_type": model_type})
    assert refusal.value.field == "config.json.model_type"
    assert repr(model_type) in refusal.value.message


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("quantization_config", {"bits": 4}),
        ("hidden_act", "mish"),
        ("hidden_act", ["gelu"]),
        ("hidden_size", 0),
        ("hidden_size", "384"),
        ("num_hidden_layers", True),
        ("num_attention_heads", 7),
        ("layer_norm_eps", 0),
        ("pad_token_id", -1),
        ("pad_token_id", 30522),
        ("vocab_size", None),
    ],
)
def test_options_we_do_not_compute_are_refused_by_key(key: str, value: object) -> None:
    assert refused_field(BERT | {key: value}) == f"config.json.{key}"


@pytest.mark.parametrize("key", [key for key in BERT if key != "model_type"])
def test_a_missing_size_is_refused_by_key(key: str) -> None:
    config = {name: value for name, value in BERT.items() if name != key}
    assert refused_field(config) == f"config.json.{key}"


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(DISTILBERT))
    assert BaseConfig.from_file(path) == BaseConfig.from_hf(DISTILBERT)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_file_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InvalidArgument):
        BaseConfig.from_file(path)


def test_no_file_is_a_failed_precondition(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition):
        BaseConfig.from_file(tmp_path / "config.json")
