"""Whether a stack answers as the model that was pushed would: looked at before anything is timed.

Knows one model's weights and one text; does not know stacks.
"""

from __future__ import annotations

import hashlib

import torch
from tokenizers import Tokenizer

from benchmarks import workload
from hmi.bases import minilm_directory
from hmi.client import Classification, Client
from services.executor.models.encoder import load_base

TOLERANCE = 0.02  # of a probability; bfloat16 against float32


class Oracle:
    """MiniLM with one model at a time, in float32."""

    def __init__(self) -> None:
        self._encoder = load_base(minilm_directory(), dtype=torch.float32, device="cpu")
        self._tokenizer = Tokenizer.from_file(str(minilm_directory() / "tokenizer.json"))
        self._tokenizer.no_padding()

    def lora(self, seed: int) -> workload.Lora:
        """The seed's random model."""
        return workload.Lora.random(self._encoder.config, seed)

    def check(self, client: Client, model: str, seed: int, text: str) -> None:
        """Digest and scores that a tenant's client gets.

        Raises:
            RuntimeError: They are not those of the seed's model.
        """
        lora = self.lora(seed)
        answers = client.predict(model, [text])
        if answers.provenance.digest != hashlib.sha256(lora.blob()).hexdigest():
            raise RuntimeError(f"{model} answered with another's weights")
        ids = torch.tensor([self._tokenizer.encode(text).ids])
        with torch.inference_mode():
            (logits,) = workload.Ours(self._encoder, [lora], ids).logits()
        expected = dict(zip(workload.LABELS, logits.softmax(-1).tolist(), strict=True))
        (answer,) = answers
        if not isinstance(answer, Classification):
            raise RuntimeError(f"{model} answered with {answer}")
        for score in answer.scores:
            if abs(score.score - expected[score.label]) > TOLERANCE:
                raise RuntimeError(f"{model}: {score}, not {expected}")
