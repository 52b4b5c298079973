"""`local_encoder.safetensors`: a local encoder as a file.

Knows names and metadata; `services/common/local_encoder_format.py` says what is admissible.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from services.common.errors import InvalidArgument, Unavailable
from services.common.local_encoder_format import FORMAT, METADATA_KEY, Form
from services.executor.models.encoder import Encoder
from services.executor.models.local_encoder import LocalEncoder


def save_local(
    path: Path, tensors: Mapping[str, Tensor], *, split: int, form: Form, unsplit_digest: str
) -> None:
    """Write float16 tensors, whole or not at all."""
    metadata = {
        "format": FORMAT,
        "split": split,
        "form": form.value,
        "unsplit_digest": unsplit_digest,
    }
    halves = {
        name: tensors[name].detach().to("cpu", torch.float16).contiguous()
        for name in sorted(tensors)
    }
    temporary = path.with_suffix(".part")
    safetensors.torch.save_file(
        halves, temporary, metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)}
    )
    os.replace(temporary, path)


def read_local(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file's tensors (float16) and what its metadata says.

    Raises:
        InvalidArgument: It is no local encoder (field: the file's name).
        Unavailable: It cannot be read at this moment, which says nothing of what it holds.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise Unavailable(f"{path.name} cannot be read: {error.strerror or error}") from error
    except (ValueError, safetensors.SafetensorError) as error:
        raise InvalidArgument(path.name, "not a complete safetensors file") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise InvalidArgument(path.name, f"its metadata does not say {FORMAT}")
    return tensors, metadata


def load_local(path: Path, base: Encoder) -> LocalEncoder:
    """The local encoder in a file, on its base's device.

    Raises:
        InvalidArgument, Unavailable: As `read_local`.
    """
    tensors, metadata = read_local(path)
    return LocalEncoder.of(base, tensors, Form(metadata["form"]))
