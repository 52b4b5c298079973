"""What makes a base split: its two further files, understood before it counts.

Knows the files' formats; does not know trees or tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hmi.admin.v1 import resources_pb2
from services.common.base_config import BaseConfig
from services.common.bases import base_digest
from services.common.errors import InvalidArgument, ResourceExhausted
from services.common.local_encoder_format import FILE_NAME, Form, check_local_encoder
from services.gateway.counts import check_counts

ROOT_FILE_NAME = "root_keys.safetensors"
SPLIT_FILES = (FILE_NAME, ROOT_FILE_NAME)
_FORMS = {Form.CENTRE: resources_pb2.FORM_CENTRE, Form.SUM: resources_pb2.FORM_SUM}


def check_split_files(files: Sequence[resources_pb2.BaseFile], max_bytes: int) -> None:
    """That of the split's files both are announced, or none.

    Raises:
        InvalidArgument: One is there without the other.
        ResourceExhausted: One is larger than `max_bytes`.
    """
    sizes = {file.name: file.size_bytes for file in files if file.name in SPLIT_FILES}
    missing = [name for name in SPLIT_FILES if name not in sizes]
    if len(missing) == 1:
        raise InvalidArgument(
            "header.files",
            f"{missing[0]} is missing: a split base has it beside {next(iter(sizes))}",
        )
    for name, size in sizes.items():
        if size > max_bytes:
            raise ResourceExhausted(f"{name} is larger than {max_bytes} bytes")


def described_split(
    files: Sequence[resources_pb2.BaseFile],
    held: Mapping[str, bytes],
    config: BaseConfig,
    max_bytes: int,
) -> resources_pb2.Split | None:
    """The split of a base with these files, as their bytes say; None if it has none.

    Raises:
        InvalidArgument: A file is not in its format, or of another base; the file is named.
    """
    if FILE_NAME not in held:
        return None
    digests = {file.name: file.sha256 for file in files}
    unsplit = base_digest(file for file in files if file.name not in SPLIT_FILES)
    encoder = check_local_encoder(FILE_NAME, held[FILE_NAME], config, unsplit, max_bytes)
    check_counts(ROOT_FILE_NAME, held[ROOT_FILE_NAME], digests["tokenizer.json"], config.vocab_size)
    return resources_pb2.Split(
        layer=encoder.split_layer,
        form=_FORMS[encoder.form],
        unsplit_digest=unsplit,
        encoder_sha256=digests[FILE_NAME],
    )
