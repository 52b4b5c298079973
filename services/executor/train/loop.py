"""Steps, evaluation and early stopping. Knows batches and losses, not files."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from services.executor.train import metrics
from services.executor.train.data import Span
from services.executor.train.encode import IGNORED, Batch, Encoded, by_length, collate, shuffled
from services.executor.train.model import Trainee
from services.executor.train.options import Epoch, Precision, Progress, Task, TrainOptions
from services.executor.train.spans import first_pieces, spans_of

_WARM_UP = 0.1
_WEIGHT_DECAY = 0.01
_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Evaluation:
    """Held-out loss (mean over examples) and metrics."""

    loss: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Fit:
    """How fitting ended; the model holds the best epoch's weights."""

    evaluation: Evaluation
    epochs: int
    best_epoch: int


class Loop:
    """Fits a model's adapter and head.

    Args:
        trainee: Changed in place.
        train: Examples to learn from.
        held_out: Examples to judge by.
        options: Of the run.
        device: Where the model is.
    """

    def __init__(
        self,
        trainee: Trainee,
        train: list[Encoded],
        held_out: list[Encoded],
        options: TrainOptions,
        device: torch.device,
    ) -> None:
        self._trainee = trainee
        self._train = train
        self._held_out = held_out
        self._options = options
        self._device = device
        # Numbers are learnt as z = (value - mean) / deviation and folded into the head at the end.
        self._mean, self._deviation = _moments(train) if self._is_regression else (0.0, 1.0)

    @property
    def _is_regression(self) -> bool:
        return self._trainee.task is Task.REGRESSION

    def run(self, progress: Progress) -> Fit:
        """Trains until the last epoch, or until `patience` epochs brought no lower held-out loss.

        The loss decides, not the metric: on the few examples that a small file can spare, one lucky
        guess moves an accuracy more than learning does.
        """
        options = self._options
        rng = random.Random(options.seed)  # noqa: S311 (reproducible by intent)
        steps_an_epoch = math.ceil(len(self._train) / options.batch_size)
        num_steps = options.epochs * steps_an_epoch
        optimizer = torch.optim.AdamW(
            self._trainee.trained, lr=options.peak_learning_rate, weight_decay=_WEIGHT_DECAY
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_and_fall(num_steps))
        progress.start(num_steps)
        best, best_epoch, epoch = self.evaluate(), 0, 0
        kept = self._weights()
        for epoch in range(1, options.epochs + 1):
            batches = shuffled(self._train, options.batch_size, rng)
            train_loss = self._pass(batches, optimizer, schedule, progress)
            evaluation = self.evaluate()
            is_best = best_epoch == 0 or evaluation.loss < best.loss
            progress.epoch(
                Epoch(
                    number=epoch,
                    num_epochs=options.epochs,
                    train_loss=train_loss,
                    held_out_loss=evaluation.loss,
                    metrics=evaluation.metrics,
                    is_best=is_best,
                )
            )
            if is_best:
                best, best_epoch, kept = evaluation, epoch, self._weights()
            elif epoch - best_epoch >= options.patience:
                break
        self._restore(kept)
        if self._is_regression:
            self._trainee.rescale(self._mean, self._deviation)
            self._mean, self._deviation = 0.0, 1.0
        return Fit(best, epoch, best_epoch)

    def _pass(
        self,
        batches: list[list[Encoded]],
        optimizer: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        progress: Progress,
    ) -> float:
        """Learns from every batch once; the mean of the texts' losses."""
        self._trainee.model.train()
        total = 0.0
        for items in batches:
            loss = self._step(self._collate(items), optimizer)
            schedule.step()
            total += loss * len(items)
            progress.step(loss)
        return total / len(self._train)

    def evaluate(self) -> Evaluation:
        """Loss and metrics of the held-out part, dropout off."""
        self._trainee.model.eval()
        total = 0.0
        items: list[Encoded] = []
        logits: list[Tensor] = []
        with torch.inference_mode():
            for group in by_length(self._held_out, self._options.batch_size * 2):
                batch = self._collate(group)
                output = self._forward(batch)
                total += self._loss(output, batch).item() * len(group)
                items += group
                logits += list(output.cpu())
        return Evaluation(total / len(items), self._metrics(items, logits))

    def _collate(self, items: list[Encoded]) -> Batch:
        trainee = self._trainee
        return collate(
            items,
            task=trainee.task,
            pad_id=trainee.pad_id,
            with_types=trainee.with_types,
            device=self._device,
        )

    def _forward(self, batch: Batch) -> Tensor:
        is_half = self._options.precision is Precision.BFLOAT16
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=is_half):
            logits: Tensor = self._trainee.model(**batch.inputs).logits
        return logits.float()

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        match self._trainee.task:
            case Task.SEQUENCE_CLASSIFICATION:
                return functional.cross_entropy(logits, batch.targets)
            case Task.TOKEN_CLASSIFICATION:
                flat = logits.flatten(0, 1)
                return functional.cross_entropy(flat, batch.targets.flatten(), ignore_index=IGNORED)
            case Task.MULTI_LABEL_CLASSIFICATION:
                return functional.binary_cross_entropy_with_logits(logits, batch.targets)
            case Task.REGRESSION:
                standard = (batch.targets - self._mean) / self._deviation
                return functional.mse_loss(logits.squeeze(-1), standard)

    def _step(self, batch: Batch, optimizer: torch.optim.Optimizer) -> float:
        loss = self._loss(self._forward(batch), batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._trainee.trained, _MAX_GRADIENT_NORM)
        optimizer.step()
        return loss.item()

    def _metrics(self, items: list[Encoded], logits: list[Tensor]) -> dict[str, float]:
        task = self._trainee.task
        if task is Task.TOKEN_CLASSIFICATION:
            true = [item.example.spans for item in items]
            return metrics.span_f1(list(map(self._spans, items, logits)), true)
        stacked = torch.stack(logits).numpy()
        if task is Task.REGRESSION:
            values = stacked[:, 0].astype(np.float64) * self._deviation + self._mean
            return metrics.rmse(values, np.array([item.example.value for item in items]))
        targets = np.array([item.target for item in items])
        if task is Task.MULTI_LABEL_CLASSIFICATION:
            return metrics.classification(stacked >= 0, targets.astype(bool))
        one_hot = np.eye(stacked.shape[1], dtype=bool)
        return metrics.classification(one_hot[stacked.argmax(1)], one_hot[targets])

    def _spans(self, item: Encoded, logits: Tensor) -> Sequence[Span]:
        """Predicted spans of one text from `[seq, tags]` logits, read as serving reads them."""
        best = logits[: len(item.token_ids)].argmax(-1).tolist()
        tags = [self._trainee.outputs[index] for index in best]
        return spans_of(item.example.text, *first_pieces(tags, item.offsets, item.words))

    def _weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self._trainee.trained]

    def _restore(self, weights: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, kept in zip(self._trainee.trained, weights, strict=True):
                parameter.copy_(kept)


def _moments(items: list[Encoded]) -> tuple[float, float]:
    """Mean and standard deviation of the values; a deviation of 1 if they are all equal."""
    values = [item.example.value for item in items]
    return statistics.fmean(values), statistics.pstdev(values) or 1.0


class _warm_up_and_fall:
    """Factor of the learning rate at a step: linear from 0 to 1, then linear to 0."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._num_warm_up = max(1, round(num_steps * _WARM_UP))

    def __call__(self, step: int) -> float:
        if step < self._num_warm_up:
            return (step + 1) / self._num_warm_up
        return (self._num_steps - step) / max(1, self._num_steps - self._num_warm_up)
