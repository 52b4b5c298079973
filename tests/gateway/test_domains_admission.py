"""Split bases and versions on them: what is taken, and what is refused with which field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from hmi.admin.v1 import resources_pb2
from services.common.bases import base_digest
from tests.gateway.blobs import sha256
from tests.gateway.conftest import Stack, unique
from tests.gateway.split import (
    ENCODER,
    HIDDEN,
    ROOT,
    TRIGRAMS,
    add_base,
    counts_blob,
    encoder_blob,
    encoder_tensors,
    pb_files,
    split_files,
    unsplit_files,
)
from tests.gateway.test_predict import expect, violation

Changed = Callable[[str], dict[str, Any]]


async def test_a_base_with_its_two_files_is_split(stack: Stack) -> None:
    name = unique("split")
    files = split_files(name)
    base = (await add_base(stack, name, files)).base
    assert base.split.layer == 1
    assert base.split.form == resources_pb2.FORM_CENTRE
    assert base.split.encoder_sha256 == sha256(files[ENCODER])
    unsplit = base_digest(pb_files(unsplit_files(name)))
    assert base.split.unsplit_digest == unsplit
    assert base.digest == base_digest(pb_files(files)) != unsplit
    assert (await add_base(stack, name, files)).base == base


def without(name: str) -> dict[str, np.ndarray]:
    tensors = encoder_tensors()
    del tensors[name]
    return tensors


def with_nan() -> dict[str, np.ndarray]:
    tensors = encoder_tensors()
    tensors["layers.0.ffn_input.weight"][3, 3] = np.inf
    return tensors


def unsorted_keys() -> bytes:
    blob = counts_blob(TRIGRAMS)
    start = 8 + int.from_bytes(blob[:8], "little")
    return (
        blob[:start] + blob[start + 8 : start + 16] + blob[start : start + 8] + blob[start + 16 :]
    )


BAD: dict[str, tuple[Changed, str]] = {
    "no root": (lambda digest: {"root": None}, "header.files"),
    "no encoder": (lambda digest: {"encoder": None}, "header.files"),
    "no container": (lambda digest: {"encoder": b"pickle"}, f"{ENCODER}.blob"),
    "another base": (
        lambda digest: {"encoder": encoder_blob("0" * 64)},
        f"{ENCODER}.metadata.unsplit_digest",
    ),
    "all layers": (
        lambda digest: {"encoder": encoder_blob(digest, split=2)},
        f"{ENCODER}.metadata.split",
    ),
    "no layer": (
        lambda digest: {"encoder": encoder_blob(digest, split=0)},
        f"{ENCODER}.metadata.split",
    ),
    "form": (
        lambda digest: {"encoder": encoder_blob(digest, form="middle")},
        f"{ENCODER}.metadata.form",
    ),
    "format": (
        lambda digest: {"encoder": encoder_blob(digest, format="hmi.local_encoder/9")},
        f"{ENCODER}.metadata.format",
    ),
    "missing tensor": (
        lambda digest: {"encoder": encoder_blob(digest, without("gate.bias"))},
        f"{ENCODER}.tensors[gate.bias]",
    ),
    "further tensor": (
        lambda digest: {"encoder": encoder_blob(digest, encoder_tensors(layers=2))},
        f"{ENCODER}.tensors[layers.1.attention_norm.bias]",
    ),
    "shape": (
        lambda digest: {
            "encoder": encoder_blob(digest, encoder_tensors() | {"norm.bias": np.zeros(9, "f2")})
        },
        f"{ENCODER}.tensors[norm.bias].shape",
    ),
    "dtype": (
        lambda digest: {
            "encoder": encoder_blob(
                digest, encoder_tensors() | {"norm.bias": np.zeros(HIDDEN, "f4")}
            )
        },
        f"{ENCODER}.tensors[norm.bias].dtype",
    ),
    "not finite": (
        lambda digest: {"encoder": encoder_blob(digest, with_nan())},
        f"{ENCODER}.tensors[layers.0.ffn_input.weight]",
    ),
    "root of another tokenizer": (lambda digest: {"root": counts_blob(TRIGRAMS, b"{}")}, ROOT),
    "root beyond the vocabulary": (lambda digest: {"root": counts_blob([(0, 15, 0)])}, ROOT),
    "root out of order": (lambda digest: {"root": unsorted_keys()}, ROOT),
    "root of no n-gram": (lambda digest: {"root": counts_blob([(1, 0, 1)])}, ROOT),
    "root cut": (lambda digest: {"root": counts_blob(TRIGRAMS)[:-3]}, ROOT),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_split_is_refused_with_its_file(stack: Stack, case: str) -> None:
    changed, field = BAD[case]
    name = unique("split")
    files = split_files(name, **changed(base_digest(pb_files(unsplit_files(name)))))
    error = await expect(grpc.StatusCode.INVALID_ARGUMENT, add_base(stack, name, files))
    assert violation(error) == field
    assert name not in stack.app.mirror.state.bases
