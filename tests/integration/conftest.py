"""One local stack on MiniLM for the integration tests, and adapters written by PEFT itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification, BertForTokenClassification

from hmi.bases import minilm_directory
from hmi.client import Client
from hmi.stack import LocalStack

# float32, so that answers can be compared with PEFT's; one thread, for the machine is shared.
EXECUTOR_ENV = {"HMI_DTYPE": "float32", "HMI_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Account:
    """A tenant and a client with its key."""

    name: str
    key_id: str
    secret: str
    client: Client


@dataclass(frozen=True, slots=True)
class Trained:
    """A PEFT directory and PEFT's own answers."""

    directory: Path
    scores: Callable[[str, str | None], torch.Tensor]
    """Softmax scores float32 `[labels]` of a text or a pair."""


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    data_dir = tmp_path_factory.mktemp("stack")
    with LocalStack(
        data_dir, port=0, device="cpu", env={"executor": EXECUTOR_ENV}, with_split_base=False
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def admin(stack: LocalStack) -> Iterator[Client]:
    with Client(stack.address, key=stack.admin_key) as client:
        yield client


def open_account(stack: LocalStack, admin: Client, name: str) -> Account:
    """A new tenant."""
    created = admin.create_tenant(name)
    assert created.key is not None
    client = Client(stack.address, key=created.key.secret)
    return Account(name, created.key.api_key.key_id, created.key.secret, client)


_numbers = itertools.count()


@pytest.fixture
def account(stack: LocalStack, admin: Client) -> Iterator[Account]:
    """A tenant of the test's own."""
    opened = open_account(stack, admin, f"tenant-{next(_numbers)}")
    with opened.client:
        yield opened


@pytest.fixture
def other(stack: LocalStack, admin: Client) -> Iterator[Account]:
    """Another tenant."""
    opened = open_account(stack, admin, f"tenant-{next(_numbers)}")
    with opened.client:
        yield opened


@pytest.fixture(scope="session")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """Random LoRA classifiers of MiniLM by seed, each made once; their B is not zero."""
    made: dict[tuple[int, int], Trained] = {}
    tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
    tokenizer.no_padding()

    def make(seed: int, num_labels: int = 4) -> Trained:
        if (seed, num_labels) not in made:
            directory = tmp_path_factory.mktemp("lora")
            made[seed, num_labels] = _classifier(directory, tokenizer, seed, num_labels)
        return made[seed, num_labels]

    return make


def _classifier(directory: Path, tokenizer: Tokenizer, seed: int, num_labels: int) -> Trained:
    torch.manual_seed(seed)
    base = BertForSequenceClassification.from_pretrained(minilm_directory(), num_labels=num_labels)
    config = LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["query", "value"])
    model = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "classifier" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(str(directory))
    labels = [f"{seed}-{index}" for index in range(num_labels)]
    note = {"task": "sequence_classification", "labels": labels, "base": "minilm"}
    (directory / "hmi.json").write_text(json.dumps(note))

    @torch.inference_mode()
    def scores(text: str, pair: str | None = None) -> torch.Tensor:
        encoding = tokenizer.encode(text) if pair is None else tokenizer.encode(text, pair)
        ids, types = torch.tensor([encoding.ids]), torch.tensor([encoding.type_ids])
        logits: torch.Tensor = model(input_ids=ids, token_type_ids=types).logits[0]
        return logits.softmax(-1)

    return Trained(directory, scores)


@pytest.fixture(scope="session")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA token classifier of MiniLM that finds spans, as a PEFT directory."""
    directory = tmp_path_factory.mktemp("tagger")
    torch.manual_seed(7)
    base = BertForTokenClassification.from_pretrained(minilm_directory(), num_labels=3)
    config = LoraConfig(task_type="TOKEN_CLS", r=4, target_modules=["query"])
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("classifier.modules_to_save.default.bias"):
                parameter.copy_(torch.tensor([-1.0, 0.5, 0.5]))
    model.save_pretrained(str(directory))
    note = {"task": "token_classification", "labels": ["O", "B-PER", "I-PER"], "base": "minilm"}
    (directory / "hmi.json").write_text(json.dumps(note))
    return directory
