"""What a gateway can be told.

Read from the environment with the prefix HMI_; knows no default of another service.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from services.common.config import ServiceSettings

MIB = 1 << 20


class GatewaySettings(ServiceSettings):
    """Settings of one gateway process."""

    knowledge_address: str = Field(description="host:port of the knowledge store.")
    cache_dir: Path = Field(description="Directory for tokenizers and configs, by digest.")
    cache_bytes: int = Field(
        1024 * MIB, gt=0, description="Bytes kept there; beyond it the least recently used go."
    )
    advertise_address: str = Field("", description="host:port others reach this gateway at.")

    max_staleness_s: float = Field(
        300.0,
        gt=0,
        description=(
            "How long keys are believed after the knowledge store was last heard. A key revoked "
            "while the store cannot reach this gateway lives at most that long; after it every "
            "call is answered UNAVAILABLE. While the store is connected a revocation takes effect "
            "at once."
        ),
    )

    default_requests_per_second: float = Field(
        0.0, ge=0, description="Requests a second of a tenant without a quota; 0 is unlimited."
    )
    default_tokens_per_second: float = Field(
        0.0, ge=0, description="Tokens a second of a tenant without a quota; 0 is unlimited."
    )
    default_max_queued_items: int = Field(
        4096, gt=0, description="Items a tenant without a quota may have waiting."
    )
    max_queued_items: int = Field(
        65_536, gt=0, description="Items waiting for all tenants together."
    )
    quota_burst_s: float = Field(
        2.0, gt=0, description="Seconds of a rate quota that can be used at once."
    )

    max_inputs: int = Field(4096, gt=0, description="Inputs of one Predict call.")
    piece_inputs: int = Field(
        256, gt=0, description="Inputs of one call that are tokenized and queued at a time."
    )
    stream_window: int = Field(
        512, gt=0, description="Items of one StreamPredict call in work at a time."
    )
    max_chars_per_token: int = Field(
        32,
        gt=0,
        description=(
            "Code points of a text, for each token that its base reads, beyond which the text is "
            "refused without being tokenized: time goes with length, and such a text is too long."
        ),
    )
    max_answer_scores: int = Field(
        400_000,  # twice 64 bytes and framing each, for the longest labels of a multi-label model
        gt=0,
        description="Labels times inputs of one answer: it must fit into a message of 64 MiB.",
    )
    default_deadline_s: float = Field(
        60.0, gt=0, description="Time to answer where the caller set no deadline."
    )
    max_deadline_s: float = Field(
        3600.0,
        gt=0,
        le=4_000_000.0,  # milliseconds go into 32 bits
        description="Longest time to answer; a caller's longer deadline is cut to it.",
    )
    executor_wait_s: float = Field(
        30.0,
        ge=0,
        description="How long items wait for an executor of their base when there is none.",
    )
    max_attempts: int = Field(
        8,
        gt=0,
        description="Executors an item is given to, one after another's death, before it fails.",
    )
    tokenizer_threads: int = Field(
        default_factory=lambda: max(1, min(4, (os.cpu_count() or 1) // 2)),
        gt=0,
        description="Threads that tokenize.",
    )

    max_upload_bytes: int = Field(256 * MIB, gt=0, description="Largest blob of a version.")
    max_base_bytes: int = Field(16_384 * MIB, gt=0, description="Largest base, all files.")
    upload_memory_bytes: int = Field(
        1024 * MIB,
        gt=0,
        description="What uploads together hold in memory; further ones wait.",
    )
    upload_idle_s: float = Field(
        30.0, gt=0, description="An upload from which too little comes for so long is ended."
    )
    upload_min_bytes_per_s: float = Field(
        65_536.0,
        ge=0,
        description=(
            "Rate below which too little comes of an upload, as a mean of the time above in which "
            "it is waited for. What came is kept, and the upload can be resumed. 0 is any byte."
        ),
    )
