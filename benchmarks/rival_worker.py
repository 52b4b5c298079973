"""One other system, in a process of its own: builds itself, writes its outputs, is timed on demand.

Run as `python rival_worker.py SYSTEM DIRECTORY` in the virtual environment that the system's pins
need, so it imports nothing of this project. DIRECTORY holds the base, `token_ids.npy` int64
`[rows, len]` and a PEFT directory a row, `adapters/ROW`. It writes `SYSTEM.npy`, float32
`[rows, len, hidden]`, computed in float32, prints `ready`, then answers each line on stdin with the
seconds of one batch (bfloat16 where the system can).
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModel

Batch = Callable[[], torch.Tensor]
LRU_SESSIONS = 8


class Inputs:
    """What the parent has laid out."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.base = directory / "base"
        self.token_ids = torch.from_numpy(np.load(directory / "token_ids.npy"))
        self.names = [f"m{row}" for row in range(len(self.token_ids))]
        self.adapters = [directory / "adapters" / str(row) for row in range(len(self.token_ids))]

    def model(self) -> torch.nn.Module:
        return AutoModel.from_pretrained(self.base, dtype=torch.float32).eval()

    def loras(self, row: int) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
        """A row's tensors by their name inside the base, and its configuration."""
        path = self.adapters[row]
        tensors = load_file(path / "adapter_model.safetensors")
        config = json.loads((path / "adapter_config.json").read_text())
        return {name.removeprefix("base_model.model."): t for name, t in tensors.items()}, config


def peft(inputs: Inputs) -> tuple[torch.nn.Module, Batch]:
    """PEFT's mixed batch: `adapter_names`, a loop over adapters in every layer."""
    from peft import PeftModel

    first, *others = zip(inputs.adapters, inputs.names, strict=True)
    model = PeftModel.from_pretrained(inputs.model(), first[0], adapter_name=first[1])
    for path, name in others:
        model.load_adapter(path, adapter_name=name)
    model.eval()
    return (
        model,
        lambda: model(input_ids=inputs.token_ids, adapter_names=inputs.names).last_hidden_state,
    )


def adapterhub(inputs: Inputs) -> tuple[torch.nn.Module, Batch]:
    """AdapterHub's `BatchSplit` over LoRA adapters."""
    import adapters
    from adapters import LoRAConfig
    from adapters.composition import BatchSplit

    model = inputs.model()
    adapters.init(model)
    for row, name in enumerate(inputs.names):
        tensors, config = inputs.loras(row)
        model.add_adapter(
            name, config=LoRAConfig(r=config["r"], alpha=config["lora_alpha"], attn_matrices="qv")
        )
        modules = dict(model.named_modules())
        with torch.no_grad():
            for key, tensor in tensors.items():
                at, part, _ = key.rsplit(".", 2)
                getattr(modules[f"{at}.loras.{name}"], part).copy_(tensor)
    model.active_adapters = BatchSplit(*inputs.names, batch_sizes=[1] * len(inputs.names))
    model.eval()
    return model, lambda: model(input_ids=inputs.token_ids).last_hidden_state


def polylora(inputs: Inputs) -> tuple[torch.nn.Module, Batch]:
    """polylora's runtime, every adapter resident."""
    from polylora import PolyLoraConfig, PolyLoraModel

    config = PolyLoraConfig(
        max_gpu_adapters=len(inputs.names) + 1, max_rank=8, target_modules=["query", "value"]
    )
    model = PolyLoraModel(inputs.model(), config).eval()
    for path, name in zip(inputs.adapters, inputs.names, strict=True):
        model.load_adapter_from_disk(name, str(path))
    mask = torch.ones_like(inputs.token_ids)
    return (
        model,
        lambda: (
            model(
                input_ids=inputs.token_ids, attention_mask=mask, adapter_ids=inputs.names
            ).last_hidden_state
        ),
    )


def merged_onnx(inputs: Inputs) -> tuple[None, Batch]:
    """A merged copy a tenant under onnxruntime (float32), a few sessions kept open."""
    import onnxruntime

    for row in range(len(inputs.names)):
        _export_merged(inputs, row)
    sessions: OrderedDict[int, onnxruntime.InferenceSession] = OrderedDict()

    def session(row: int) -> onnxruntime.InferenceSession:
        if row in sessions:
            sessions.move_to_end(row)
            return sessions[row]
        if len(sessions) == LRU_SESSIONS:
            sessions.popitem(last=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        path = str(inputs.directory / "onnx" / f"{row}.onnx")
        sessions[row] = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        return sessions[row]

    def batch() -> torch.Tensor:
        ids = inputs.token_ids.numpy()
        outputs = [
            session(row).run(None, {"input_ids": ids[row : row + 1]})[0] for row in range(len(ids))
        ]
        return torch.from_numpy(np.concatenate(outputs))

    return None, batch


class _HiddenStates(torch.nn.Module):
    """What is exported: ids to hidden states."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids).last_hidden_state


def _export_merged(inputs: Inputs, row: int) -> None:
    (inputs.directory / "onnx").mkdir(exist_ok=True)
    model = inputs.model()
    tensors, config = inputs.loras(row)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for key, a in tensors.items():
            if key.endswith(".lora_A.weight"):
                at = key.removesuffix(".lora_A.weight")
                b = tensors[f"{at}.lora_B.weight"]
                modules[at].weight += (b @ a) * (config["lora_alpha"] / config["r"])
    torch.onnx.export(
        _HiddenStates(model),
        (inputs.token_ids[:1],),
        inputs.directory / "onnx" / f"{row}.onnx",
        input_names=["input_ids"],
        dynamo=False,
    )


SYSTEMS = {
    "peft": peft,
    "adapterhub": adapterhub,
    "polylora": polylora,
    "merged_onnx": merged_onnx,
}


def main() -> None:
    name, directory = sys.argv[1], Path(sys.argv[2])
    torch.manual_seed(0)
    with torch.inference_mode():
        inputs = Inputs(directory)
        model, batch = SYSTEMS[name](inputs)
        np.save(directory / f"{name}.npy", batch().float().numpy())
        if model is not None:
            model.to(torch.bfloat16)
        print("ready", flush=True)
        for _ in sys.stdin:
            begin = time.perf_counter()
            batch()
            print(time.perf_counter() - begin, flush=True)


if __name__ == "__main__":
    main()
