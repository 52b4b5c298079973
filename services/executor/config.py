"""What an executor can be told, by environment variables named HMI_…"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from services.common.config import ServiceSettings


class ExecutorSettings(ServiceSettings):
    """Settings of one executor: one process, one device."""

    knowledge_address: str = Field(description="host:port of the knowledge store.")
    cache_dir: Path = Field(description="Where blobs read from the store are kept.")
    cache_bytes: int = Field(
        64 << 30,
        gt=0,
        description="Bytes of blobs kept there; beyond it the least recently used go. Must hold "
        "the largest base.",
    )
    blob_dir: Path | None = Field(
        None, description="The store's own blob directory, if it is on a volume shared with it."
    )
    advertise_address: str = Field(
        "", description="host:port at which gateways reach this executor; empty: where it serves."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where to compute; auto takes CUDA if there is a device."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Compute type; auto takes bfloat16 where the device has it in hardware."
    )
    device_adapter_bytes: int = Field(
        256 << 20, gt=0, description="Device memory for adapters, in bytes, for each base."
    )
    host_adapter_bytes: int = Field(
        1 << 30, gt=0, description="Host memory for adapters, in bytes, for each base."
    )
    host_table_bytes: int = Field(
        4 << 30, gt=0, description="Host memory for tables' indexes, in bytes, for each split base."
    )
    hot_table_bytes: int = Field(
        256 << 20,
        ge=0,
        description="Device memory (on a CPU: host memory) for the rows of tables that are asked "
        "for most, in bytes, for each split base.",
    )
    computed_row_bytes: int = Field(
        256 << 20,
        ge=0,
        description="Host memory for rows that were computed where tables lack them, in bytes, for "
        "each split base; a tenant gets an eighth of it for each encoder that its domains have.",
    )
    max_batch_tokens: int = Field(
        0, ge=0, description="Tokens of a batch; 0: 1024 on a CPU, 16384 on CUDA."
    )
    max_batch_rows: int = Field(
        0, ge=0, description="Rows of a batch; 0: 64 on a CPU, 256 on CUDA."
    )
    credit_batches: float = Field(
        3.0,
        gt=0,
        description="Batches' worth of tokens that all gateways together may have submitted, for "
        "each batch that computes at once. One tenant alone takes two thirds of it. More keeps the "
        "device busy over slow networks; less keeps queues where cancelling is cheap.",
    )
    num_threads: int = Field(0, ge=0, description="Threads of CPU compute; 0: torch's default.")
    num_workers: int = Field(
        0,
        ge=0,
        description="Batches that a CPU computes at once, each on its part of the threads; 0: one "
        "a thread. Fewer, and a single large batch is done sooner, but fewer are done in all.",
    )
    failpoints: str = Field(
        "", description="Test facility, see services/executor/failpoints.py. Empty: off."
    )
