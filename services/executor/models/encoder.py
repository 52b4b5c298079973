"""A frozen BERT, RoBERTa, XLM-R or DistilBERT over packed tokens.

Every linear layer sees `[tokens, hidden]` without padding; layers run as a range, rows may enter at
different layers, and a bypass adds each row's task knowledge. Knows no adapter, tenant or batch
policy, and never makes up a weight.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from services.common.base_config import Activation, BaseConfig
from services.common.errors import FailedPrecondition
from services.executor.models.attention import KeyValues, OwnRow, attend
from services.executor.models.bypass import Bypass, Site
from services.executor.models.checkpoint import open_checkpoint
from services.executor.models.packed import pack
from services.executor.models.segments import Segments
from services.executor.models.weights import EncoderWeights, Layer, load_weights

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.GELU: F.gelu,
    Activation.GELU_TANH: lambda x: F.gelu(x, approximate="tanh"),
    Activation.RELU: F.relu,
    Activation.SILU: F.silu,
}
_DTYPES = (torch.float32, torch.bfloat16)


def load_base(directory: Path, *, dtype: torch.dtype, device: torch.device | str) -> Encoder:
    """The encoder in a Hugging Face directory (config.json and safetensors).

    Args:
        dtype: float32 or bfloat16; weights are stored and computed in it.

    Raises:
        InvalidArgument: An architecture or option we do not compute (field `config.json.KEY`), or
            a tensor that is missing, misshapen or not finite (field: its name).
        FailedPrecondition: There is no config.json, or there are no weights.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype {dtype} is none of {_DTYPES}")
    config = BaseConfig.from_file(directory / "config.json")
    with open_checkpoint(directory, dtype=dtype, device=torch.device(device)) as checkpoint:
        return Encoder(config, load_weights(checkpoint, config))


class Encoder:
    """An encoder's layers, callable in parts.

    Args:
        config: The base's sizes.
        weights: Its tensors, all of one dtype on one device.
    """

    def __init__(self, config: BaseConfig, weights: EncoderWeights) -> None:
        self.config = config
        self.weights = weights
        self.dtype = weights.embeddings.words.dtype
        self.device = weights.embeddings.words.device
        self._activation = ACTIVATIONS[config.activation]

    def for_inference(self) -> Self:
        """The same encoder with its layers' weights laid out as the processor likes them.

        It computes the same but for rounding, and has no gradient.
        """
        layers = tuple(_packed(layer) for layer in self.weights.layers)
        return type(self)(self.config, replace(self.weights, layers=layers))

    @property
    def has_pooler(self) -> bool:
        """Whether the checkpoint has a pooler, so that `pool` can be called."""
        return self.weights.pooler is not None

    def embed(
        self,
        token_ids: Tensor,
        type_ids: Tensor | None,
        segments: Segments,
        position_offsets: Tensor | None = None,
    ) -> Tensor:
        """Token, position and type embeddings, summed and normalised: the input of layer 0.

        Args:
            token_ids: int64 `[tokens]`, all inside the vocabulary: on a GPU another would end the
                device's context, and with it every tenant's batch.
            type_ids: int64 `[tokens]`; None is all zeros. Ignored, as transformers' tokenizers do
                for these bases, where there is at most one type.
            position_offsets: int64 `[rows]`: tokens each row has had before this call (RoBERTa:
                those that are not padding). None is all zeros.

        Returns:
            `[tokens, hidden]` in the encoder's dtype.
        """
        tables = self.weights.embeddings
        hidden = F.embedding(token_ids, tables.words)
        if tables.types is not None:
            if type_ids is None or self.config.type_vocab_size == 1:
                hidden += tables.types[0]
            else:
                hidden += F.embedding(type_ids, tables.types)
        hidden += F.embedding(
            self._positions(token_ids, segments, position_offsets), tables.positions
        )
        return tables.norm(hidden)

    def _positions(
        self, token_ids: Tensor, segments: Segments, position_offsets: Tensor | None
    ) -> Tensor:
        """int64 `[tokens]`: rows of the position table."""
        if not self.config.positions_skip_pads:
            positions = segments.position_of_token
            if position_offsets is not None:
                positions = positions + position_offsets[segments.row_of_token]
            return positions
        # fairseq's rule: padding inside a text stands at pad_token_id and is not counted.
        is_counted = token_ids != self.config.pad_token_id
        counted = is_counted.cumsum(0)
        before_row = (counted - is_counted.to(counted.dtype))[segments.first_tokens]
        if position_offsets is not None:
            before_row = before_row - position_offsets
        place = counted - before_row[segments.row_of_token]
        return torch.where(is_counted, place, 0) + self.config.pad_token_id

    def run(
        self,
        hidden: Tensor,
        segments: Segments,
        *,
        layers: range,
        bypass: Bypass,
        entry_layers: Sequence[int] | None = None,
        kv: KeyValues | None = None,
    ) -> Tensor:
        """Some of the layers, on the rows that have entered by then.

        Args:
            hidden: `[tokens, hidden]`: each row's input of the first layer that computes it.
            layers: Consecutive layers of this base.
            bypass: Called at every site; its `prefix` where only the first rows have entered.
            entry_layers: First layer of each row, ascending, so that the rows that have entered
                are a prefix. A row not yet in passes through unchanged. None is all zeros.
            kv: What queries see beside and beyond their own row; see `KeyValues`.

        Returns:
            `[tokens, hidden]`: the output of the last layer, `hidden` itself for no layer.

        Raises:
            ValueError: `layers` is not in the base, or `entry_layers` is not as described.
        """
        self._check_range(layers)
        key_values = kv or OwnRow()
        for stage, num_rows in _stages(layers, segments.num_rows, entry_layers):
            active = segments.prefix(num_rows)
            present = bypass if active is segments else bypass.prefix(num_rows)
            x = hidden[: active.num_tokens]
            for layer in stage:
                x = self._layer(layer, x, active, present, key_values)
            waiting = hidden[active.num_tokens :]
            hidden = torch.cat([x, waiting]) if len(waiting) else x
        return hidden

    def pool(self, first_hidden: Tensor) -> Tensor:
        """BERT's pooler, tanh(W x + b), on each row's first token: `[rows, hidden]` to the same.

        Raises:
            FailedPrecondition: The checkpoint has no pooler.
        """
        if self.weights.pooler is None:
            raise FailedPrecondition("pooler.dense.weight: the base's checkpoint has no pooler")
        return torch.tanh(self.weights.pooler(first_hidden))

    def _layer(
        self, index: int, x: Tensor, segments: Segments, bypass: Bypass, kv: KeyValues
    ) -> Tensor:
        """One post-norm layer, `[tokens, hidden]` to the same."""
        layer = self.weights.layers[index]

        seen = bypass.scale_input(index, Site.ATTENTION_INPUT, x)
        qkv = bypass.add(index, Site.ATTENTION_INPUT, seen, layer.qkv(seen))
        context = attend(qkv, segments, num_heads=self.config.num_heads, layer=index, key_values=kv)
        context = bypass.scale_input(index, Site.ATTENTION_OUTPUT, context)
        mixed = layer.attention_output(context)
        mixed = bypass.add(index, Site.ATTENTION_OUTPUT, context, mixed)
        x = bypass.close(index, Site.ATTENTION_OUTPUT, mixed, x, layer.attention_norm)

        seen = bypass.scale_input(index, Site.FFN_INPUT, x)
        inner = bypass.add(index, Site.FFN_INPUT, seen, layer.ffn_input(seen))
        inner = bypass.scale_input(index, Site.FFN_OUTPUT, self._activation(inner))
        outer = bypass.add(index, Site.FFN_OUTPUT, inner, layer.ffn_output(inner))
        return bypass.close(index, Site.FFN_OUTPUT, outer, x, layer.ffn_norm)

    def _check_range(self, layers: range) -> None:
        is_inside = layers.start >= 0 and layers.stop <= self.config.num_layers
        if layers.step != 1 or (len(layers) and not is_inside):
            raise ValueError(f"{layers} is no range of the base's {self.config.num_layers} layers")


def _packed(layer: Layer) -> Layer:
    return replace(
        layer,
        qkv=pack(layer.qkv),
        attention_output=pack(layer.attention_output),
        ffn_input=pack(layer.ffn_input),
        ffn_output=pack(layer.ffn_output),
    )


def _stages(
    layers: range, num_rows: int, entry_layers: Sequence[int] | None
) -> Iterator[tuple[range, int]]:
    """Consecutive layers that the same rows run, with the number of those rows."""
    if entry_layers is None:
        entry_layers = [0] * num_rows
    if len(entry_layers) != num_rows or list(entry_layers) != sorted(entry_layers):
        raise ValueError(f"entry_layers must be {num_rows} ascending layers")
    starts = sorted({layers.start, *(entry for entry in entry_layers if entry in layers)})
    for start, stop in zip(starts, [*starts[1:], layers.stop], strict=True):
        num_active = bisect_right(entry_layers, start)
        if num_active and start < stop:
            yield range(start, stop), num_active
