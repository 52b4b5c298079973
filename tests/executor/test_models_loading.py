"""What the encoder accepts as a base, and how it names what it does not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from services.common.errors import FailedPrecondition, InvalidArgument
from services.executor.models.encoder import Encoder, load_base
from tests.executor import parity

QUERY = "bert.encoder.layer.1.attention.self.query.weight"


def load(directory: Path) -> Encoder:
    return load_base(directory, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved")
    parity.write_checkpoint(directory, "bert")
    return directory


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(saved, tmp_path / "base"))


def rewrite(base: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, base / "model.safetensors")


def weights(base: Path) -> dict[str, Tensor]:
    return load_file(base / "model.safetensors")


def change_config(base: Path, **changes: object) -> None:
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | changes))


def states(encoder: Encoder) -> Tensor:
    return parity.our_hidden(encoder, parity.random_rows([3, 7]))[-1]


def test_shards_with_an_index_equal_one_file(saved: Path, tmp_path: Path) -> None:
    parity.write_checkpoint(tmp_path, "bert", max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(states(load(tmp_path)), states(load(saved)))


def test_names_without_the_architecture_prefix_are_read(base: Path) -> None:
    expected = states(load(base))
    rewrite(base, {name.removeprefix("bert."): tensor for name, tensor in weights(base).items()})
    assert torch.equal(states(load(base)), expected)


def test_tensorflows_norm_names_are_read(base: Path) -> None:
    expected = states(load(base))
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = {}
    for name, tensor in weights(base).items():
        for new_suffix, old_suffix in old.items():
            name = name.replace(new_suffix, old_suffix)
        renamed[name] = tensor
    rewrite(base, renamed)
    assert torch.equal(states(load(base)), expected)


def test_half_precision_checkpoints_are_converted(base: Path) -> None:
    rewrite(base, {name: tensor.half() for name, tensor in weights(base).items()})
    assert load(base).dtype == torch.float32


def test_a_missing_tensor_is_refused_by_name(base: Path) -> None:
    rewrite(base, {name: tensor for name, tensor in weights(base).items() if name != QUERY})
    with pytest.raises(InvalidArgument) as refusal:
        load(base)
    assert refusal.value.field == QUERY


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_half_a_pooler_is_refused_by_name(base: Path, part: str) -> None:
    name = f"bert.pooler.dense.{part}"
    rewrite(base, {key: tensor for key, tensor in weights(base).items() if key != name})
    with pytest.raises(InvalidArgument) as refusal:
        load(base)
    assert refusal.value.field == name


@pytest.mark.parametrize(
    "spoilt",
    [
        torch.zeros(48, 47),
        torch.zeros(48, 48, dtype=torch.int64),
        torch.full((48, 48), float("nan")),
        torch.full((48, 48), float("inf")),
    ],
    ids=["shape", "integer", "nan", "infinity"],
)
def test_a_spoilt_tensor_is_refused_by_name(base: Path, spoilt: Tensor) -> None:
    rewrite(base, weights(base) | {QUERY: spoilt})
    with pytest.raises(InvalidArgument) as refusal:
        load(base)
    assert refusal.value.field == QUERY


def test_more_layers_than_weights_are_refused_by_name(base: Path) -> None:
    change_config(base, num_hidden_layers=4)
    with pytest.raises(InvalidArgument) as refusal:
        load(base)
    assert refusal.value.field == "bert.encoder.layer.3.attention.self.query.weight"


def test_a_directory_without_weights_is_refused(base: Path) -> None:
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(FailedPrecondition):
        load(base)


def test_weights_of_another_architecture_are_refused(base: Path, tmp_path: Path) -> None:
    parity.write_checkpoint(tmp_path / "other", "distilbert")
    shutil.copy(tmp_path / "other" / "model.safetensors", base)
    with pytest.raises(FailedPrecondition):
        load(base)


def test_a_directory_without_configuration_is_refused(base: Path) -> None:
    (base / "config.json").unlink()
    with pytest.raises(FailedPrecondition):
        load(base)


@pytest.mark.parametrize("keep", [0, 20, -100], ids=["empty", "header", "tail"])
def test_a_truncated_file_is_refused(base: Path, keep: int) -> None:
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(InvalidArgument) as refusal:
        load(base)
    assert refusal.value.field == "model.safetensors"


@pytest.mark.parametrize("shard", ["../model.safetensors", "/etc/passwd", "", 7, ".."])
def test_an_index_that_leaves_the_directory_is_refused(base: Path, shard: object) -> None:
    (base / "model.safetensors").rename(base.parent / "model.safetensors")
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {QUERY: shard}}))
    with pytest.raises(InvalidArgument) as refusal:
        load(base)
    assert refusal.value.field == index.name


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_malformed_index_is_refused(base: Path, text: str) -> None:
    (base / "model.safetensors").unlink()
    index = base / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(InvalidArgument) as refusal:
        load(base)
    assert refusal.value.field == index.name


def test_an_absent_shard_is_refused(base: Path) -> None:
    (base / "model.safetensors").unlink()
    index = base / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {QUERY: "model-00001-of-00002.safetensors"}}))
    with pytest.raises(FailedPrecondition):
        load(base)


def test_other_precisions_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="dtype"):
        load_base(saved, dtype=torch.float64, device="cpu")
