"""Tiny random bases and labelled files for the training tests."""

from __future__ import annotations

import string
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WORDS = [
    "bread", "soup", "salt", "oven", "goal", "coach", "tennis", "league", "anna", "berg", "oslo",
    "paris", "lives", "in", "the", "good", "bad", "is", "works", "for", "acme", "and",
]  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def tiny_tokenizer() -> Tokenizer:
    """A WordPiece tokenizer of a few words and all letters, so that other words fall to pieces."""
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    vocabulary = SPECIAL + letters + ["##" + letter for letter in letters] + WORDS
    ids = {word: index for index, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    # As all-MiniLM's file has them: training must not inherit either.
    tokenizer.enable_padding(length=64)
    tokenizer.enable_truncation(9)
    return tokenizer


def tiny_base(directory: Path, architecture: str, *, with_pooler: bool = True) -> Path:
    """A random 2-layer checkpoint of width 32, saved without any head."""
    torch.manual_seed(7)
    tokenizer = tiny_tokenizer()
    common = {"vocab_size": tokenizer.get_vocab_size(), "pad_token_id": 0}
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "max_position_embeddings": 64, "initializer_range": 0.2,
    }  # fmt: skip
    if architecture == "bert":
        config = transformers.BertConfig(**common, **sizes)
        model = transformers.BertModel(config, add_pooling_layer=with_pooler)
    elif architecture == "roberta":
        config = transformers.RobertaConfig(**common, **sizes, type_vocab_size=1)
        model = transformers.RobertaModel(config, add_pooling_layer=False)
    else:
        config = transformers.DistilBertConfig(
            **common, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64,
            initializer_range=0.2,
        )  # fmt: skip
        model = transformers.DistilBertModel(config)
    model.save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def topics(path: Path, num_rows: int = 60) -> Path:
    """Two topics told apart by their words."""
    words = {"food": WORDS[:4], "sport": WORDS[4:8]}
    rows = ["text,label"]
    for i in range(num_rows):
        label = ("food", "sport")[i % 2]
        chosen = words[label]
        rows.append(
            f"the {chosen[i % 4]} is {('good', 'bad')[i % 3 == 0]} {chosen[i // 4 % 4]},{label}"
        )
    path.write_text("\n".join(rows), "utf-8")
    return path
