"""Which tokenizers a gateway holds, and which token counts it takes."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hmi.admin.v1 import resources_pb2
from services.common.errors import InvalidArgument
from services.gateway.domain import Base, Encoded, Text
from services.gateway.tokenization import Tokenization, check_lengths, load_tokenizer
from tests.gateway.conftest import tokenizer_json


async def test_a_deleted_bases_tokenizer_is_let_go_and_comes_again(tmp_path: Path) -> None:
    read = []

    async def path(digest: str) -> Path:
        read.append(digest)
        file = tmp_path / digest
        file.write_bytes(tokenizer_json())
        return file

    cache: Any = SimpleNamespace(path=path)
    tokenization = Tokenization(cache, 1)
    one, two = (Base(resources_pb2.Base(tokenizer_digest=digest)) for digest in ("1", "2"))
    texts = [Text("cat sat", None, "text", "pair")]
    tokenization.keep([one, two])
    for base in (one, two):
        await tokenization.encode(base, "acme", texts, with_offsets=False)
    held = weakref.ref(await tokenization.prefetch(one))
    tokenization.keep([two])
    gc.collect()
    assert held() is None
    (encoded,) = await tokenization.encode(one, "acme", texts, with_offsets=False)
    assert len(encoded.ids) == 4
    await tokenization.encode(two, "acme", texts, with_offsets=False)
    assert read == ["1", "2", "1"]
    tokenization.close()


def test_a_text_without_a_token_is_refused_by_name(tmp_path: Path) -> None:
    """As blanks are for a tokenizer that adds no special tokens: there is nothing to compute."""
    content = json.loads(tokenizer_json())
    content["post_processor"] = None
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    encoded = [Encoded(load_tokenizer(file).encode(text).ids, 0) for text in ("cat", "  ")]
    texts = [Text("cat", None, "inputs[0].text", ""), Text("  ", None, "inputs[1].text", "")]
    with pytest.raises(InvalidArgument) as caught:
        check_lengths(texts, encoded, 64)
    assert caught.value.field == "inputs[1].text"
