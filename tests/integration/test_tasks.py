"""Every kind of adapter and task through the whole stack: the answers are those of its library."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertForSequenceClassification

from hmi.bases import minilm_directory
from hmi.client import Classification, Client, MultiLabel, Regression
from tests.integration.conftest import Account

TEXT = "The keeper saved a late penalty."
# Written by tests/oracles/adapterhub.py: adapters on a tiny BERT, token ids and their logits.
HUB = Path(__file__).parents[1] / "executor" / "fixtures" / "adapterhub" / "bert"
NUM_WORDS = 40


def made_by_peft(directory: Path, config: PeftConfig, task: str, labels: list[str]) -> list[float]:
    """Save a random adapter of MiniLM; PEFT's logits for TEXT."""
    torch.manual_seed(3)
    base = BertForSequenceClassification.from_pretrained(minilm_directory(), num_labels=len(labels))
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(str(directory))
    (directory / "hmi.json").write_text(json.dumps({"task": task, "labels": labels}))
    tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
    tokenizer.no_padding()
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([tokenizer.encode(TEXT).ids])).logits
    return logits[0].tolist()


def lora() -> PeftConfig:
    return LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])


def test_an_ia3_classifier_answers_as_peft_does(account: Account, tmp_path: Path) -> None:
    config = IA3Config(
        task_type="SEQ_CLS",
        target_modules=["key", "value", "output.dense"],
        feedforward_modules=["output.dense"],
    )
    task = "sequence_classification"
    logits = made_by_peft(tmp_path, config, task, ["a", "b", "c"])
    assert account.client.push_version("ia3", tmp_path).adapter_type == "IA3"
    answer = account.client.predict("ia3", TEXT)[0]
    assert isinstance(answer, Classification)
    expected = torch.tensor(logits).softmax(-1).tolist()
    assert [one.score for one in answer.scores] == pytest.approx(expected, abs=1e-4)


def test_a_multi_label_model_answers_with_each_labels_own_probability(
    account: Account, tmp_path: Path
) -> None:
    labels = ["sport", "money", "science", "law"]
    logits = made_by_peft(tmp_path, lora(), "multi_label_classification", labels)
    account.client.push_version("topics", tmp_path)
    answer = account.client.predict("topics", TEXT)[0]
    assert isinstance(answer, MultiLabel)
    expected = torch.tensor(logits).sigmoid().tolist()
    assert [one.score for one in answer.scores] == pytest.approx(expected, abs=1e-4)
    chosen = [label for label, logit in zip(labels, logits, strict=True) if logit >= 0]
    assert list(answer.labels) == chosen


def test_a_regression_answers_with_the_number_itself(account: Account, tmp_path: Path) -> None:
    logits = made_by_peft(tmp_path, lora(), "regression", ["stars"])
    account.client.push_version("rating", tmp_path)
    answer = account.client.predict("rating", TEXT)[0]
    assert isinstance(answer, Regression)
    assert list(answer.values) == pytest.approx(logits, abs=1e-4)


@pytest.fixture(scope="module")
def hub_base(admin: Client, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The fixtures' base, with a tokenizer whose word `tN` is token N."""
    directory = tmp_path_factory.mktemp("hub")
    shutil.copytree(HUB / "base", directory, dirs_exist_ok=True)
    words = {f"t{number}": number for number in range(NUM_WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(directory / "tokenizer.json"))
    admin.add_base("tiny-hub", directory)
    return "tiny-hub"


@pytest.mark.parametrize("name", ["pfeiffer", "houlsby", "channel"])
def test_a_bottleneck_adapter_answers_as_adapterhub_does(
    account: Account, hub_base: str, name: str
) -> None:
    case: dict[str, Any] = json.loads((HUB / "answers.json").read_text())[name]
    version = account.client.push_version(name, HUB / name, base=hub_base)
    assert version.adapter_type == "BOTTLENECK"
    text = " ".join(f"t{token_id}" for token_id in case["token_ids"])
    answer = account.client.predict(name, text)[0]
    assert answer.num_tokens == len(case["token_ids"])
    logits = torch.tensor(case["logits"])
    assert isinstance(answer, Classification | MultiLabel)
    is_multi = isinstance(answer, MultiLabel)
    expected = (logits.sigmoid() if is_multi else logits.softmax(-1)).tolist()
    assert [one.score for one in answer.scores] == pytest.approx(expected, abs=1e-4)
