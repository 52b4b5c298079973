"""The base with a new head and a new adapter, as PEFT wraps it; and back to a PEFT directory.

Everything of the base stays frozen, BERT's pooler too. Knows nothing of examples or optimisation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by huggingface_hub when first imported

import peft
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from transformers.utils import logging as _logging

from services.common.base_config import Architecture, BaseConfig
from services.common.errors import InvalidArgument
from services.executor.train.looked_up import look_up
from services.executor.train.options import Adapter, Task, TrainOptions
from services.executor.train.spans import tag_names
from services.executor.train.tables import Tables

_log: Any = _logging  # untyped
_POOLER = "pooler"


@dataclass(frozen=True)
class _Parts:
    """Names of the parts of one model type."""

    query_value: tuple[str, ...]
    ia3: tuple[str, ...]
    ia3_feed_forward: tuple[str, ...]
    sequence_head: tuple[str, ...]
    """Modules of the sequence head; its last linear map comes last."""
    logits: str
    """Path of the linear map that gives a sequence's logits."""


_BERT = _Parts(
    ("query", "value"), ("key", "value", "output.dense"), ("output.dense",),
    ("classifier",), "classifier",
)  # fmt: skip
_ROBERTA = _Parts(
    ("query", "value"), ("key", "value", "output.dense"), ("output.dense",),
    ("classifier",), "classifier.out_proj",
)  # fmt: skip
_DISTILBERT = _Parts(
    ("q_lin", "v_lin"), ("k_lin", "v_lin", "lin2"), ("lin2",),
    ("pre_classifier", "classifier"), "classifier",
)  # fmt: skip
_PARTS = {
    Architecture.BERT: _BERT,
    Architecture.ROBERTA: _ROBERTA,
    Architecture.XLM_ROBERTA: _ROBERTA,
    Architecture.DISTILBERT: _DISTILBERT,
}


class Trainee:
    """A base with adapter and head under training.

    Args:
        options: Of the run.
        config: Of the base.
        task: What the head does.
        labels: Of the data; a span label makes two tags.
        device: Where it will be trained.
        tables: What answers for n-grams of a split base; None: each its own row.

    Raises:
        InvalidArgument: the base's weights are missing, or no layer matches target_modules.
    """

    def __init__(
        self,
        options: TrainOptions,
        config: BaseConfig,
        task: Task,
        labels: tuple[str, ...],
        device: torch.device,
        tables: Tables | None = None,
    ) -> None:
        self.task = task
        self.base = options.base
        self._domain = options.domain
        self.outputs = tag_names(labels) if task is Task.TOKEN_CLASSIFICATION else labels
        self._parts = _PARTS[config.architecture]
        self.with_types = config.type_vocab_size > 1
        self.pad_id = config.pad_token_id
        model, missing = self._load(options.base_dir)
        self._layers = range(config.num_layers)
        if options.local_encoder is not None:
            split = look_up(
                model.get_submodule(str(model.base_model_prefix)),
                options.base_dir,
                options.local_encoder,
                tables,
                device=device,
            )
            self._layers = self._layers[split:]
        adapter = self._adapter_config(options, has_pooler=_POOLER not in missing)
        try:
            self.model: Any = peft.get_peft_model(model, adapter)
        except ValueError as error:  # PEFT's way to say that a target matches nothing
            raise InvalidArgument("target_modules", str(error)) from error
        self.model.peft_config["default"].base_model_name_or_path = options.base

    def _load(self, base_dir: Path) -> tuple[nn.Module, set[str]]:
        """The model and which of its parts the base lacks (head, pooler)."""
        if not (base_dir / "model.safetensors").is_file():
            raise InvalidArgument("base", f"{base_dir} holds no model.safetensors")
        is_tagger = self.task is Task.TOKEN_CLASSIFICATION
        auto: Any = (
            transformers.AutoModelForTokenClassification
            if is_tagger
            else transformers.AutoModelForSequenceClassification
        )
        with _quiet():
            model, info = auto.from_pretrained(
                base_dir,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # a head of other size in the checkpoint is not used
                id2label=dict(enumerate(self.outputs)),
                label2id={label: i for i, label in enumerate(self.outputs)},
            )
        missing = {_part(name, model.base_model_prefix) for name in info["missing_keys"]}
        lost = missing - {_POOLER, *self._parts.sequence_head}
        if lost:
            raise InvalidArgument("base", f"model.safetensors lacks {', '.join(sorted(lost))}")
        return model, missing

    def _adapter_config(self, options: TrainOptions, *, has_pooler: bool) -> Any:
        is_tagger = self.task is Task.TOKEN_CLASSIFICATION
        saved = ["classifier"] if is_tagger else list(self._parts.sequence_head)
        if not has_pooler and not is_tagger:
            saved.append(_POOLER)  # trained from scratch, so it must travel with the head
        common: dict[str, Any] = {
            "task_type": peft.TaskType.TOKEN_CLS if is_tagger else peft.TaskType.SEQ_CLS,
            "modules_to_save": saved,
        }
        if options.adapter is Adapter.IA3:
            targets = options.target_modules or self._parts.ia3
            inward = [name for name in targets if name in self._parts.ia3_feed_forward]
            return peft.IA3Config(
                target_modules=list(targets), feedforward_modules=inward, **common
            )
        return peft.LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            target_modules=list(options.target_modules or self._parts.query_value),
            **common,
        )

    @property
    def trained(self) -> list[nn.Parameter]:
        """Parameters of adapter and head."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def rescale(self, mean: float, deviation: float) -> None:
        """Folds z -> z * deviation + mean into the head, which then gives values, not z."""
        wrapped = self.model.base_model.model.get_submodule(self._parts.sequence_head[-1])
        head = wrapped.modules_to_save["default"]
        _, _, inner = self._parts.logits.partition(".")
        linear = head.get_submodule(inner)
        with torch.no_grad():
            linear.weight.mul_(deviation)
            linear.bias.mul_(deviation).add_(mean)

    def save(self, out: Path) -> None:
        """Writes adapter_model.safetensors, adapter_config.json and hmi.json, the last one last."""
        state: dict[str, Tensor] = peft.get_peft_model_state_dict(
            self.model, save_embedding_layers=False
        )
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        out.mkdir(parents=True, exist_ok=True)
        hmi = {
            "task": self.task.value,
            "labels": list(self.outputs),
            "pooling": None,
            "normalize": False,
            "base": self.base,
        }
        if self._domain is not None:
            hmi["domain"] = self._domain
        (out / "hmi.json").unlink(missing_ok=True)  # a half-replaced directory is not whole
        blob = safetensors.torch.save(tensors, metadata={"format": "pt"})
        (out / "adapter_model.safetensors").write_bytes(blob)
        config = self.model.peft_config["default"]
        config.inference_mode = True  # as PEFT writes it: loading is for prediction by default
        if self._layers.start:
            _restrict(config, self._layers, tensors)
        # Sets, and names that PEFT adds twice: sorted, so that equal runs write equal bytes.
        config.target_modules = sorted(config.target_modules)
        config.modules_to_save = sorted(set(config.modules_to_save))
        if config.peft_type == peft.PeftType.IA3:
            config.feedforward_modules = sorted(config.feedforward_modules)
        config.save_pretrained(out)
        (out / "hmi.json").write_text(json.dumps(hmi, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _restrict(config: Any, layers: range, tensors: Mapping[str, Tensor]) -> None:
    """Say in a PEFT configuration that only these layers are adapted, whatever the base has."""
    if config.peft_type != peft.PeftType.IA3:
        config.layers_to_transform = list(layers)
        return
    # IA3 knows no layers: its targets are named in full.
    ending = ".ia3_l"
    adapted = {
        name.removeprefix("base_model.model.").removesuffix(ending)
        for name in tensors
        if name.endswith(ending)
    }
    inward = tuple(f".{name}" for name in config.feedforward_modules)
    config.target_modules = adapted
    config.feedforward_modules = {name for name in adapted if name.endswith(inward)}


def _part(name: str, prefix: str) -> str:
    """`bert.pooler.dense.weight` is of `pooler`, `classifier.bias` of `classifier`."""
    return name.removeprefix(f"{prefix}.").split(".")[0]


class _quiet:
    """No progress bars and no advice about the new head while transformers loads."""

    def __enter__(self) -> None:
        self._verbosity = _log.get_verbosity()
        self._has_bars = _log.is_progress_bar_enabled()
        _log.set_verbosity_error()
        _log.disable_progress_bar()

    def __exit__(self, *exc: object) -> None:
        _log.set_verbosity(self._verbosity)
        if self._has_bars:
            _log.enable_progress_bar()
