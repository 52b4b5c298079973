"""What is wrong is refused with the right status and the field's name; nothing is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import safetensors.numpy
from safetensors import deserialize

from hmi.errors import HmiError, InvalidArgument, NotFound, PermissionDenied
from hmi.knowledge.v1 import knowledge_pb2
from hmi.knowledge.v1.knowledge_pb2_grpc import KnowledgeServiceStub
from hmi.pack import PackOptions, canonical_json, pack, serialize
from hmi.stack import LocalStack
from tests.integration.conftest import Account, Trained

Lora = Callable[..., Trained]


@pytest.fixture
def model(account: Account, lora: Lora) -> Account:
    account.client.push_version("m", lora(1).directory)
    return account


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ([], "inputs"),
        ([""], "inputs[0].text"),
        (["fine", ""], "inputs[1].text"),
        (["word " * 600], "inputs[0].text"),
        (["x"] * 4097, "inputs"),
    ],
    ids=["none", "empty", "second empty", "over-long", "too many"],
)
def test_wrong_texts_are_named(model: Account, texts: list[str], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        model.client.predict("m", texts)
    assert caught.value.field == field
    assert model.client.get_usage(model.name).num_queued == 0


def test_pair_for_a_tagger_is_refused(account: Account, tagger: Path) -> None:
    account.client.push_version("tags", tagger)
    with pytest.raises(InvalidArgument) as caught:
        account.client.predict("tags", ["a"], pairs=["b"])
    assert caught.value.field == "inputs[0].text_pair"


def test_unknown_models_and_versions_are_not_found(model: Account) -> None:
    for name, version in (("none", 0), ("m", 99)):
        with pytest.raises(NotFound):
            model.client.predict(name, "text", version=version)


@pytest.mark.parametrize("name", ["../up", "a/b", "A", "", "x" * 64, "1st", "a\x00b", "..", "a b"])
def test_names_that_could_be_paths_are_refused(account: Account, lora: Lora, name: str) -> None:
    with pytest.raises(InvalidArgument):
        account.client.push_version(name, lora(1).directory)
    assert account.client.list_models() == []


def test_unknown_base_is_not_found(account: Account, lora: Lora) -> None:
    with pytest.raises(NotFound):
        account.client.push_version("m", lora(1).directory, base="other")
    assert account.client.list_models() == []


def _altered(blob: bytes, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """The blob with its tensors and description changed."""
    size = int.from_bytes(blob[:8], "little")
    description = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["hmi"])
    tensors: dict[str, Any] = dict(deserialize(blob))
    change(tensors, description)
    return serialize(tensors, {"hmi": canonical_json(description)})


def _array(array: np.ndarray) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(array.shape), "data": array.astype("<f4").tobytes()}


def _nan_weights(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    name = next(name for name in tensors if "lora_A" in name)
    values = np.zeros(tensors[name]["shape"], np.float32)
    values.flat[0] = np.nan
    tensors[name] = _array(values)


def _other_hidden_size(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    for name in [name for name in tensors if "lora_A" in name]:
        tensors[name] = _array(np.ones((8, 128), np.float32))


def _layer_the_base_lacks(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    for name in [name for name in tensors if "layer.5." in name]:
        tensors[name.replace("layer.5.", "layer.50.")] = tensors.pop(name)


def _one_label_too_many(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    description["labels"].append("extra")


def _dora(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    description["adapter_config"]["use_dora"] = True


def _unknown_type(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    description["adapter_config"]["peft_type"] = "PREFIX_TUNING"


def _stray_tensor(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    tensors["base_model.model.stray.weight"] = _array(np.ones((2, 2), np.float32))


def _no_head(tensors: dict[str, Any], description: dict[str, Any]) -> None:
    for name in [name for name in tensors if "classifier" in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (_nan_weights, "lora_A"),
        (_other_hidden_size, "lora_A"),
        (_layer_the_base_lacks, "layer"),
        (_one_label_too_many, "labels"),
        (_dora, "use_dora"),
        (_unknown_type, "peft_type"),
        (_stray_tensor, "stray"),
        (_no_head, ""),
    ],
)
def test_adapter_that_cannot_be_served_is_refused(
    account: Account,
    lora: Lora,
    change: Callable[[dict[str, Any], dict[str, Any]], None],
    named: str,
) -> None:
    blob = _altered(pack(lora(1).directory), change)
    with pytest.raises(InvalidArgument) as caught:
        account.client.push_version("m", blob)
    assert named in f"{caught.value.field} {caught.value.message}"
    assert account.client.list_models() == []


@pytest.mark.parametrize(
    "blob",
    [b"", b"\x80\x04\x95pickle", b"PK\x03\x04 a torch file", b"\xff" * 64],
    ids=["empty", "pickle", "zip", "noise"],
)
def test_what_is_no_safetensors_is_refused(account: Account, blob: bytes) -> None:
    with pytest.raises(InvalidArgument):
        account.client.push_version("m", blob)
    assert account.client.list_models() == []


def test_plain_safetensors_without_a_description_is_refused(account: Account) -> None:
    blob = safetensors.numpy.save({"x": np.ones(3, np.float32)})
    with pytest.raises(InvalidArgument):
        account.client.push_version("m", blob)


def test_labels_that_differ_from_the_head_are_refused_before_sending(
    account: Account, lora: Lora
) -> None:
    options = PackOptions(labels=["one"])
    with pytest.raises(InvalidArgument) as caught:
        account.client.push_version("m", lora(1).directory, options=options)
    assert caught.value.field == "labels"


@pytest.mark.parametrize("token", [None, "wrong", "admin"])
def test_store_is_reached_with_the_service_token_only(stack: LocalStack, token: str | None) -> None:
    secret = stack.admin_key if token == "admin" else token
    metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
    with grpc.insecure_channel(stack.knowledge_address) as channel:
        stub = KnowledgeServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.StatBlob(
                knowledge_pb2.StatBlobRequest(sha256="0" * 64), metadata=metadata, timeout=5
            )
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_base_with_another_architecture_is_refused_by_name(
    stack: LocalStack, admin: Any, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "hidden_size": 8}))
    (tmp_path / "tokenizer.json").write_text("{}")
    safetensors.numpy.save_file({"x": np.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InvalidArgument, match="gpt2"):
        admin.add_base("decoder", tmp_path)
    assert "decoder" not in [base.name for base in admin.list_bases()]


def test_base_is_added_by_an_admin_only(account: Account, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(PermissionDenied):
        account.client.add_base("mine", tmp_path)


def test_every_error_has_a_reason_for_programs(model: Account) -> None:
    for call in (
        lambda: model.client.predict("none", "text"),
        lambda: model.client.predict("m", []),
        lambda: model.client.list_tenants(),
    ):
        with pytest.raises(HmiError) as caught:
            call()
        assert caught.value.reason.isupper()


def test_malformed_csv_is_one_line_on_stderr(tmp_path: Path) -> None:
    data = tmp_path / "bad.csv"
    data.write_text('text,label\n"never closed,good\n')
    command = [sys.executable, "-m", "hmi", "train", str(data), "--out", str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
