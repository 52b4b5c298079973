"""Heads saved beside a PEFT adapter (`modules_to_save`), as Hugging Face's models have them."""

from __future__ import annotations

from services.common.adapter_format.modules import POOLER, module_names
from services.common.adapter_format.peft_format import MODEL
from services.common.adapter_format.reader import Reader
from services.common.adapter_format.spec import Dense, Head, Reads, Task
from services.common.base_config import Architecture, BaseConfig
from services.common.errors import InvalidArgument


def read_peft_head(
    reader: Reader, base: BaseConfig, task: Task, num_labels: int, *, changes_pooler: bool
) -> Head:
    """The classification head for a task on a base.

    Args:
        changes_pooler: The adapter changes the base's pooler, so the head applies its own.

    Raises:
        InvalidArgument: A tensor is missing or misshapen, or the label count differs.
    """
    hidden = base.hidden_size
    if task is Task.TOKEN_CLASSIFICATION:
        return Head(Reads.TOKENS, (_output(reader, num_labels, hidden),), num_labels)
    if base.architecture is Architecture.BERT:
        pooler = _own_pooler(reader, base)
        if pooler is None and changes_pooler:
            pooler = Dense(None, None, "tanh")
        output = _output(reader, num_labels, hidden)
        if pooler is None:
            return Head(Reads.POOLED, (output,), num_labels)
        return Head(Reads.FIRST, (pooler, output), num_labels)
    if base.architecture is Architecture.DISTILBERT:
        first = _dense(reader, f"{MODEL}pre_classifier", hidden, "relu")
        return Head(Reads.FIRST, (first, _output(reader, num_labels, hidden)), num_labels)
    first = _dense(reader, f"{MODEL}classifier.dense", hidden, "tanh")
    output = _linear(reader, f"{MODEL}classifier.out_proj", num_labels, hidden)
    return Head(Reads.FIRST, (first, output), num_labels)


def _own_pooler(reader: Reader, base: BaseConfig) -> Dense | None:
    prefix = module_names(base).prefix_of([name.removeprefix(MODEL) for name in reader.tensors])
    stem = f"{MODEL}{prefix}{POOLER}"
    if f"{stem}.weight" not in reader.tensors:
        return None
    return _dense(reader, stem, base.hidden_size, "tanh")


def _dense(reader: Reader, stem: str, hidden: int, activation: str) -> Dense:
    weight = reader.take(f"{stem}.weight", hidden, hidden)
    return Dense(weight, reader.take(f"{stem}.bias", hidden), activation)


def _output(reader: Reader, num_labels: int, hidden: int) -> Dense:
    stem = f"{MODEL}classifier"
    if f"{stem}.weight" not in reader.tensors and f"{MODEL}score.weight" in reader.tensors:
        stem = f"{MODEL}score"
    return _linear(reader, stem, num_labels, hidden)


def _linear(reader: Reader, stem: str, num_labels: int, hidden: int) -> Dense:
    weight = f"{stem}.weight"
    reader.check_present(weight)
    shape = reader.tensors.shape(weight)
    if len(shape) == 2 and shape[1] == hidden and shape[0] != num_labels:
        raise InvalidArgument("labels", f"{num_labels} labels, but the head has {shape[0]}")
    reader.take(weight, num_labels, hidden)
    bias = f"{stem}.bias"
    # `score` heads are made without a bias.
    has_bias = not stem.endswith("score") or bias in reader.tensors
    return Dense(weight, reader.take(bias, num_labels) if has_bias else None, "linear")
