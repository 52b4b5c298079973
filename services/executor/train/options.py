"""What a training run is asked for and what it reports. Holds values only; does no work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from services.common.errors import InvalidArgument
from services.common.ids import check_path
from services.executor.miss_policy import MissPolicy


class Task(StrEnum):
    """What the head does; the values are those of the version blob."""

    SEQUENCE_CLASSIFICATION = "sequence_classification"
    MULTI_LABEL_CLASSIFICATION = "multi_label_classification"
    REGRESSION = "regression"
    TOKEN_CLASSIFICATION = "token_classification"  # noqa: S105 (no password)


class Adapter(StrEnum):
    """Kind of adapter."""

    LORA = "lora"
    IA3 = "ia3"


class Precision(StrEnum):
    """Arithmetic of the forward and backward pass; parameters are float32 always."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """One training run. Equal options on equal data give equal weights (on one CPU type)."""

    data: Path
    """CSV (`.csv`) or JSON Lines (`.jsonl`, `.json`, `.ndjson`), UTF-8."""
    base_dir: Path
    """Directory of the base: config.json, tokenizer.json, model.safetensors."""
    base: str
    """The base's registered name; written as `base_model_name_or_path`, so no path leaks out."""
    out: Path
    """Directory to write. Files of an earlier run in it are replaced."""
    local_encoder: Path | None = None
    """`local_encoder.safetensors` of a split base, whose layers below the split are not trained."""
    root_keys: Path | None = None
    """`root_keys.safetensors` of the split base: n-grams that tables hold before any domain's."""
    policy: MissPolicy = MissPolicy.BACKOFF
    """The domain's. Under backoff, a text under training misses what neither the root nor another
    training text holds; metrics are of texts that miss what no training text holds."""
    domain: str | None = None
    """Path of the domain it is made for: written down, so that a push knows it."""
    task: Task | None = None
    """None infers it from the data's columns."""
    adapter: Adapter = Adapter.LORA
    """LoRA learns faster; IA3 is about ten times smaller."""
    rank: int = 8
    """LoRA's rank r."""
    alpha: int = 16
    """LoRA's scale: the update is multiplied by alpha / rank."""
    target_modules: tuple[str, ...] = ()
    """Linear layers to adapt, by suffix. Empty: query and value (LoRA), PEFT's choice (IA3)."""
    epochs: int = 20
    """Passes over the training part at most."""
    patience: int = 3
    """Epochs without a lower loss on the held-out part before stopping."""
    batch_size: int = 16
    """Texts a step."""
    learning_rate: float | None = None
    """Peak rate of AdamW for adapter and head. None: 2e-3 for LoRA, 1e-2 for IA3."""
    max_tokens: int | None = None
    """Longer texts are cut, and named in the report's notes. None: as many as the base reads, which
    is what serving takes."""
    held_out: float = 0.2
    """Share of the examples kept for early stopping and metrics, above 0, at most 0.5."""
    seed: int = 0
    """Seeds the split, the head's first weights, dropout and the order of examples."""
    precision: Precision = Precision.FLOAT32
    """bfloat16 uses autocast; worth it only where the processor multiplies bfloat16 natively."""
    device: str = "auto"
    """auto, cpu or cuda. On CUDA a seed repeats a run closely, not bit by bit."""

    def __post_init__(self) -> None:
        for name in ("rank", "alpha", "epochs", "patience", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidArgument(name, "must be at least 1")
        if self.max_tokens is not None and self.max_tokens < 8:
            raise InvalidArgument("max_tokens", "must be at least 8")
        if not 0 < self.held_out <= 0.5:
            raise InvalidArgument("held_out", "must be above 0 and at most 0.5")
        if self.learning_rate is not None and self.learning_rate <= 0:
            raise InvalidArgument("learning_rate", "must be above 0")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InvalidArgument("device", f"{self.device!r} is none of auto, cpu, cuda")
        if self.domain is not None:
            check_path("domain", self.domain)

    @property
    def peak_learning_rate(self) -> float:
        """The rate given, or the adapter's default."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-3 if self.adapter is Adapter.LORA else 1e-2


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What came out. Metrics are of the held-out part, with the weights that were kept."""

    out: Path
    task: Task
    labels: tuple[str, ...]
    metrics: dict[str, float]
    """accuracy and macro_f1; for spans span_f1, precision and recall; for numbers rmse."""
    num_train: int
    num_held_out: int
    num_truncated: int
    """Texts cut at `max_tokens`."""
    max_tokens: int
    """The tokens of a text that were read."""
    notes: tuple[str, ...]
    """What should be known before the metrics are trusted, a sentence each."""
    num_trained_parameters: int
    epochs: int
    """Epochs run; fewer than were asked for if the held-out loss fell no more."""
    best_epoch: int
    """The epoch whose weights were kept, from 1."""
    duration_s: float

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            **asdict(self),
            "out": str(self.out),
            "labels": list(self.labels),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """How one pass over the training part went. Losses are means over texts."""

    number: int
    """From 1."""
    num_epochs: int
    """How many there are unless training stops early."""
    train_loss: float
    """While learning, dropout on."""
    held_out_loss: float
    metrics: dict[str, float]
    """Of the held-out part."""
    is_best: bool
    """No earlier epoch's held-out loss was lower: its weights are kept."""


class Progress(Protocol):
    """Told how a run goes along."""

    def note(self, text: str) -> None:
        """A sentence on the data that should be known before it is trained on."""
        ...

    def start(self, num_steps: int) -> None:
        """Training begins; it takes `num_steps` steps unless it stops early."""
        ...

    def step(self, loss: float) -> None:
        """One step is done with this training loss."""
        ...

    def epoch(self, done: Epoch) -> None:
        """An epoch is done."""
        ...

    def finish(self) -> None:
        """Training is over, early or not. Called on errors too."""
        ...
