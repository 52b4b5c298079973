"""One training run, from options to report. Wires the parts; each part's rules are its own."""

from __future__ import annotations

import time

import torch

from services.common.base_config import BaseConfig
from services.common.errors import InvalidArgument
from services.executor.device import asked_device
from services.executor.miss_policy import MissPolicy
from services.executor.train.concerns import concerns
from services.executor.train.data import Examples, read_examples
from services.executor.train.encode import Encoded, encode, load_tokenizer
from services.executor.train.loop import Fit, Loop
from services.executor.train.model import Trainee
from services.executor.train.options import Progress, TrainOptions, TrainReport
from services.executor.train.progress import NoProgress
from services.executor.train.splits import split
from services.executor.train.tables import Tables, root_keys


def train(options: TrainOptions, progress: Progress | None = None) -> TrainReport:
    """Fits adapter and head to the examples of `options.data`; writes a PEFT directory.

    The directory holds adapter_config.json, adapter_model.safetensors (classifier included) and
    hmi.json. `base_model_name_or_path` is a name, not a path, so PEFT is handed the base:

        base = AutoModelForSequenceClassification.from_pretrained(BASE_DIR, num_labels=4)
        model = PeftModel.from_pretrained(base, OUT)

    The process's random state is left as it was; runs in one process at a time, as torch's random
    state is global.

    Raises:
        InvalidArgument: naming the option, the key of config.json that is not served, or the
            data's file, line and column.
        FailedPrecondition: the base's directory holds no config.json.
    """
    started = time.monotonic()
    progress = progress or NoProgress()
    device = asked_device(options.device)
    config = BaseConfig.from_file(options.base_dir / "config.json")
    examples = read_examples(options.data, options.task)
    if options.out.exists() and not options.out.is_dir():
        raise InvalidArgument("out", f"{options.out} is not a directory")
    max_tokens = min(options.max_tokens or config.max_tokens, config.max_tokens)
    encoded = encode(examples, load_tokenizer(options.base_dir, max_tokens))
    train_part, held_out = split(examples, options.held_out, options.seed)
    truncated = [item.example for item in encoded.values() if item.is_truncated]
    notes = concerns(
        examples,
        train_part,
        held_out,
        truncated,
        max_tokens=max_tokens,
        served_tokens=config.max_tokens,
    )
    for text in notes:
        progress.note(text)
    parts = [encoded[item] for item in train_part], [encoded[item] for item in held_out]
    trainee, fit = _fit(options, config, examples, parts, device, progress)
    trainee.save(options.out)
    return TrainReport(
        out=options.out,
        task=examples.task,
        labels=examples.labels,
        metrics=fit.evaluation.metrics,
        num_train=len(train_part),
        num_held_out=len(held_out),
        num_truncated=len(truncated),
        max_tokens=max_tokens,
        notes=notes,
        num_trained_parameters=sum(p.numel() for p in trainee.trained),
        epochs=fit.epochs,
        best_epoch=fit.best_epoch,
        duration_s=time.monotonic() - started,
    )


def _fit(
    options: TrainOptions,
    config: BaseConfig,
    examples: Examples,
    parts: tuple[list[Encoded], list[Encoded]],
    device: torch.device,
    progress: Progress,
) -> tuple[Trainee, Fit]:
    """Train on the first part, judge by the second."""
    train_part, held_out = parts
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(options.seed)
        tables = _tables(options, [item.token_ids for item in train_part])
        trainee = Trainee(options, config, examples.task, examples.labels, device, tables)
        trainee.model.to(device)
        loop = Loop(trainee, train_part, held_out, options, device)
        try:
            return trainee, loop.run(progress)
        finally:
            progress.finish()


def _tables(options: TrainOptions, texts: list[list[int]]) -> Tables | None:
    """What answers for n-grams; None where each has its own row, and on a base that is not split.

    Args:
        texts: Token ids of the texts that are learnt from.
    """
    if options.local_encoder is None or options.policy is MissPolicy.COMPUTE:
        return None
    return Tables(root_keys(options.root_keys), texts)
