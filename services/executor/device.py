"""Where and in which type to compute.

Knows what torch can tell of this machine; does not know models.
"""

from __future__ import annotations

import torch

from services.common.errors import InvalidArgument
from services.executor.engine.batching import Limits


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` as a device.

    Raises:
        ValueError: CUDA is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("HMI_DEVICE=cuda, but torch finds no CUDA device")
    return torch.device(name)


def asked_device(name: str) -> torch.device:
    """The device that somebody's option `device` names.

    Raises:
        InvalidArgument: It is no such name, or CUDA is asked for and there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InvalidArgument("device", f"{name!r} is none of auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise InvalidArgument("device", "no CUDA device is available")
    return pick_device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto`, `float32` or `bfloat16` as a type; auto takes bfloat16 where hardware computes it."""
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    has_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def dtype_name(dtype: torch.dtype) -> str:
    """A type's name, such as `bfloat16`, as settings and files have it."""
    return str(dtype).removeprefix("torch.")


def pick_limits(max_tokens: int, max_rows: int, device: torch.device) -> Limits:
    """Batch limits; 0 takes what suits the device: a CPU is saturated by far smaller batches."""
    is_cpu = device.type == "cpu"
    return Limits(
        max_tokens=max_tokens or (1024 if is_cpu else 16384),
        max_rows=max_rows or (64 if is_cpu else 256),
    )


def pick_workers(num_workers: int, device: torch.device) -> int:
    """Batches that compute at once: 0 takes one a thread of torch's on a CPU; none on CUDA, where
    the device computes behind the engine's own thread."""
    if device.type != "cpu":
        return 0
    return min(num_workers or torch.get_num_threads(), torch.get_num_threads())
