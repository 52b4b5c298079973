"""Names that users choose, and the log lines that name their requests."""

from __future__ import annotations

import json
import logging

import pytest

from services.common.errors import InvalidArgument
from services.common.ids import check_name, check_sha256
from services.common.logs import JsonFormatter, request_id_var, tenant_var


@pytest.mark.parametrize("name", ["a", "news-2", "a" * 63])
def test_a_name_is_accepted(name: str) -> None:
    assert check_name("model", name) == name


@pytest.mark.parametrize(
    "name", ["", "A", "1a", "-a", "a_b", "a/b", "../a", "a" * 64, "a\n", "a\0", "é"]
)
def test_anything_else_is_refused_by_field(name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_name("upload.model", name)
    assert caught.value.field == "upload.model"


@pytest.mark.parametrize("value", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_only_64_hex_digits_are_a_digest(value: str) -> None:
    with pytest.raises(InvalidArgument):
        check_sha256("sha256", value)


def test_a_log_line_names_request_and_tenant() -> None:
    request_id_var.set("r-1")
    tenant_var.set("acme")
    record = logging.makeLogRecord(
        {"name": "n", "levelname": "INFO", "msg": "loaded %s", "args": ("m",), "size_bytes": 3}
    )
    entry = json.loads(JsonFormatter("gateway").format(record))
    assert entry["message"] == "loaded m"
    assert (entry["request_id"], entry["tenant"]) == ("r-1", "acme")
    assert (entry["service"], entry["size_bytes"]) == ("gateway", 3)
