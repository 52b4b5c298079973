"""A trained directory becomes one blob: same in, same out; what is wrong is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize

from hmi.errors import InvalidArgument
from hmi.pack import PackOptions, base_of, pack, serialize, trained_base_of

PREFIX = "base_model.model."


def _write_peft(directory: Path, *, num_labels: int = 3, **config: object) -> None:
    tensors = {
        f"{PREFIX}bert.encoder.layer.0.attention.self.query.lora_B.weight": np.ones(
            (4, 2), np.float32
        ),
        f"{PREFIX}bert.encoder.layer.0.attention.self.query.lora_A.weight": np.ones(
            (2, 4), np.float16
        ),
        f"{PREFIX}classifier.weight": np.ones((num_labels, 4), np.float32),
        f"{PREFIX}classifier.bias": np.zeros(num_labels, np.float32),
    }
    safetensors.numpy.save_file(tensors, directory / "adapter_model.safetensors")
    known = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 2, "lora_alpha": 4}
    (directory / "adapter_config.json").write_text(json.dumps({**known, **config}))


def _write_adapterhub(directory: Path, *, head: dict[str, object] | None) -> None:
    adapter = {"bert.encoder.layer.0.output.adapters.a.adapter_up.weight": np.ones((4, 2))}
    safetensors.numpy.save_file(adapter, directory / "adapter.safetensors")
    (directory / "adapter_config.json").write_text(json.dumps({"name": "a", "config": {}}))
    if head is not None:
        weights = {"heads.a.1.weight": np.ones((2, 4), np.float32)}
        safetensors.numpy.save_file(weights, directory / "model_head.safetensors")
        (directory / "head_config.json").write_text(json.dumps({"name": "a", "config": head}))


def _header(blob: bytes) -> dict[str, Any]:
    size = int.from_bytes(blob[:8], "little")
    header: dict[str, Any] = json.loads(blob[8 : 8 + size])
    return header


def _description(blob: bytes) -> dict[str, Any]:
    description: dict[str, Any] = json.loads(_header(blob)["__metadata__"]["hmi"])
    return description


def test_tensors_come_back_in_the_order_of_their_names(tmp_path: Path) -> None:
    _write_peft(tmp_path)
    blob = pack(tmp_path)
    original = dict(deserialize((tmp_path / "adapter_model.safetensors").read_bytes()))
    header = _header(blob)
    assert [name for name in header if name != "__metadata__"] == sorted(original)
    assert dict(deserialize(blob)) == original


def test_same_directory_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory in (one, two):
        directory.mkdir()
        _write_peft(directory)
    config = json.loads((two / "adapter_config.json").read_text())
    reversed_keys = dict(reversed(config.items()))
    (two / "adapter_config.json").write_text(json.dumps(reversed_keys, indent=4))
    assert pack(one) == pack(two)


def test_description_of_a_classifier(tmp_path: Path) -> None:
    _write_peft(tmp_path)
    description = _description(pack(tmp_path))
    assert list(description) == sorted(description)
    assert description["format"] == "peft"
    assert description["adapter_config"]["peft_type"] == "LORA"
    assert description["head_config"] is None
    assert description["task"] == "sequence_classification"
    assert description["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]


def test_note_of_training_is_read_and_labels_given_win(tmp_path: Path) -> None:
    _write_peft(tmp_path, num_labels=2)
    note = {"task": "multi_label_classification", "labels": ["a", "b"], "base": "minilm"}
    (tmp_path / "hmi.json").write_text(json.dumps(note))
    description = _description(pack(tmp_path))
    assert description["task"] == "multi_label_classification"
    assert description["labels"] == ["a", "b"]
    assert base_of(tmp_path) == "minilm"

    flags = PackOptions(task="multi_label_classification", labels=["c", "d"])
    description = _description(pack(tmp_path, flags))
    assert description["task"] == "multi_label_classification"
    assert description["labels"] == ["c", "d"]


@pytest.mark.parametrize("noted", ["sequence_classification", None])
@pytest.mark.parametrize("stated", ["token_classification", "embedding"])
def test_a_task_that_the_directory_contradicts_is_refused(
    tmp_path: Path, noted: str | None, stated: str
) -> None:
    _write_peft(tmp_path)
    if noted is not None:
        (tmp_path / "hmi.json").write_text(json.dumps({"task": noted}))
    with pytest.raises(InvalidArgument) as caught:
        pack(tmp_path, PackOptions(task=stated))
    assert (caught.value.field, caught.value.reason) == ("task", "TASK_CONTRADICTED")
    assert (noted or "SEQ_CLS") in caught.value.message


def test_a_sequence_head_may_be_said_to_give_several_labels(tmp_path: Path) -> None:
    _write_peft(tmp_path)
    options = PackOptions(task="multi_label_classification")
    assert _description(pack(tmp_path, options))["task"] == "multi_label_classification"


def test_base_that_the_adapter_names(tmp_path: Path) -> None:
    _write_peft(tmp_path, base_model_name_or_path="bert-base-uncased")
    assert trained_base_of(tmp_path) == "bert-base-uncased"


def test_one_output_is_a_regression(tmp_path: Path) -> None:
    _write_peft(tmp_path, num_labels=1)
    assert _description(pack(tmp_path))["task"] == "regression"


def test_feature_extraction_is_an_embedding(tmp_path: Path) -> None:
    _write_peft(tmp_path, task_type="FEATURE_EXTRACTION")
    description = _description(pack(tmp_path, PackOptions(pooling="cls", normalize=False)))
    assert description["task"] == "embedding"
    assert description["labels"] == []
    assert description["pooling"] == "cls"
    assert description["normalize"] is False


def test_adapterhub_directory_with_its_head(tmp_path: Path) -> None:
    head = {"head_type": "tagging", "num_labels": 2, "label2id": {"B-X": 1, "O": 0}}
    _write_adapterhub(tmp_path, head=head)
    blob = pack(tmp_path)
    description = _description(blob)
    assert description["format"] == "adapterhub"
    assert description["task"] == "token_classification"
    assert description["labels"] == ["O", "B-X"]
    assert description["head_config"]["config"] == head
    assert len(deserialize(blob)) == 2


def test_adapterhub_directory_without_a_head_embeds(tmp_path: Path) -> None:
    _write_adapterhub(tmp_path, head=None)
    assert _description(pack(tmp_path))["task"] == "embedding"


def test_base_itself_can_embed(tmp_path: Path) -> None:
    (tmp_path / "hmi.json").write_text(json.dumps({"task": "embedding", "pooling": "mean"}))
    blob = pack(tmp_path)
    assert _description(blob)["format"] == "none"
    assert deserialize(blob) == []


@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_adapter.bin", "adapter.pt"])
def test_pickle_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04")
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InvalidArgument) as caught:
        pack(tmp_path)
    assert caught.value.field == name
    assert caught.value.reason == "PICKLE"


def test_pickle_under_a_safetensors_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x80\x04\x95" + b"x" * 100)
    with pytest.raises(InvalidArgument) as caught:
        pack(tmp_path)
    assert caught.value.field == "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (PackOptions(labels=["only one"]), "labels"),
        (PackOptions(task="translation"), "task"),
        (PackOptions(pooling="max"), "pooling"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, options: PackOptions, field: str) -> None:
    _write_peft(tmp_path)
    with pytest.raises(InvalidArgument) as caught:
        pack(tmp_path, options)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("adapter_config.json", b"{"),
        ("hmi.json", b"[]"),
        ("hmi.json", b"\xff"),
        ("hmi.json", b'{"task": "translation"}'),
    ],
)
def test_bad_json_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    _write_peft(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgument) as caught:
        pack(tmp_path)
    assert caught.value.field == name


def test_unserved_task_type_asks_for_the_task(tmp_path: Path) -> None:
    _write_peft(tmp_path, task_type="CAUSAL_LM")
    with pytest.raises(InvalidArgument) as caught:
        pack(tmp_path)
    assert caught.value.field == "task"


@given(
    st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__"),
        st.binary(max_size=64),
        max_size=8,
    ),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_any_tensors_survive(contents: dict[str, bytes], metadata: dict[str, str]) -> None:
    tensors: Any = {
        name: {"dtype": "U8", "shape": [len(data)], "data": data} for name, data in contents.items()
    }
    read = {
        name: bytes(tensor["data"]) for name, tensor in deserialize(serialize(tensors, metadata))
    }
    assert read == contents


def test_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import hmi.pack, hmi.client, hmi.cli"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
