"""From a submitted message to an item, or to the reason why not.

Knows the wire format of a submit and what a base can take; does not know streams or credit.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping

import numpy as np

from hmi.executor.v1 import executor_pb2 as pb
from services.common.errors import FailedPrecondition, InvalidArgument
from services.common.ids import check_sha256
from services.executor.engine.interfaces import LoadedBase
from services.executor.engine.items import Item, ModelKey


def key_from_pb(key: pb.ModelKey) -> ModelKey:
    return ModelKey(key.tenant, key.model, key.version, key.digest, key.base_digest)


class Admission:
    """Makes items of submits.

    Args:
        bases: The bases served, by digest. May change.
    """

    def __init__(self, bases: Mapping[str, LoadedBase]) -> None:
        self._bases = bases
        self._ids = itertools.count()

    def admit(self, submit: pb.Submit) -> Item:
        """The item of a submit.

        Raises:
            FailedPrecondition: Its base is not served here, or another tokenizer made its ids.
            InvalidArgument: There are no ids, too many, or one out of range; or no tables are named
                and the base is split, or the other way about.
        """
        key = key_from_pb(submit.key)
        base = self._bases.get(key.base_digest)
        if base is None:
            raise FailedPrecondition(
                f"base {key.base_digest} is not served here", reason="BASE_NOT_SERVED"
            )
        if submit.tokenizer_digest != base.tokenizer_digest:
            raise FailedPrecondition(
                "the token ids were made by another tokenizer than the base's",
                reason="TOKENIZER_MISMATCH",
            )
        num_tokens = len(submit.token_ids)
        if not 0 < num_tokens <= base.max_tokens:
            raise InvalidArgument(
                "token_ids", f"there are {num_tokens}; the base takes 1 to {base.max_tokens}"
            )
        token_ids = np.fromiter(submit.token_ids, np.int64, num_tokens)
        if int(token_ids.max()) >= base.vocab_size:
            raise InvalidArgument("token_ids", f"ids must be below {base.vocab_size}")
        if submit.num_first_segment_tokens > num_tokens:
            raise InvalidArgument(
                "num_first_segment_tokens", f"is more than the {num_tokens} tokens"
            )
        if not 0 <= submit.weight < math.inf:
            raise InvalidArgument("weight", "must be a positive number")
        _check_table_version(submit.table_version, base)
        timeout_ms = submit.timeout_ms
        return Item(
            id=next(self._ids),
            key=key,
            token_ids=token_ids,
            num_first_segment_tokens=submit.num_first_segment_tokens,
            entry_layer=0 if base.split is None else base.split.layer,
            table_version=submit.table_version,
            deadline=time.monotonic() + timeout_ms / 1000 if timeout_ms else math.inf,
            weight=submit.weight or 1.0,
        )


def _check_table_version(table_version: str, base: LoadedBase) -> None:
    if base.split is not None:
        check_sha256("table_version", table_version)
    elif table_version:
        raise InvalidArgument("table_version", "the base is not split: its items read no tables")
