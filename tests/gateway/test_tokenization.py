"""Which tokenizers a gateway holds."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hmi.admin.v1 import resources_pb2
from services.gateway.domain import Base, Text
from services.gateway.tokenization import Tokenization
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
