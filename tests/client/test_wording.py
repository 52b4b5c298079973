"""Errors on the command line name options and arguments, not a request's fields."""

from __future__ import annotations

import pytest

from hmi.cli.wording import of_a_later_piece, of_a_local_run, on_a_command_line
from hmi.errors import HmiError, InvalidArgument
from services.common import errors as service_errors


@pytest.mark.parametrize(
    ("field", "word"),
    [
        ("header.model", "--name"),
        ("header.name", "NAME"),
        ("header.domain", "--domain"),
        ("header.domain.path", "PATH"),
        ("header.domain.alpha", "--alpha"),
        ("header.domain.miss_policy", "--policy"),
        ("domain.byte_budget", "--budget"),
        ("tenant.name", "NAME"),
        ("tenant.quota.requests_per_second", "--requests-per-second"),
        ("inputs[2].text", "text 3"),
        ("inputs[0].text_pair", "--pair 1"),
        ("held_out", "--held-out"),
        ("adapter_config.r", "adapter_config.r"),
        ("data.csv:3: label", "data.csv:3: label"),
    ],
)
def test_a_field_is_named_as_it_was_typed(field: str, word: str) -> None:
    error = InvalidArgument(f"{field}: is wrong", field=field)
    assert on_a_command_line(error) == f"{word}: is wrong"
    assert error.field == field


@pytest.mark.parametrize(
    "error",
    [
        HmiError("path: of nothing"),
        InvalidArgument("--adapter is none of lora, ia3", field="adapter"),
        InvalidArgument("paths: two", field="path"),
    ],
)
def test_other_messages_stay(error: HmiError) -> None:
    assert on_a_command_line(error) == error.message


def test_the_error_of_a_local_run_keeps_its_field() -> None:
    refused = of_a_local_run(service_errors.InvalidArgument("rank", "must be at least 1"))
    assert (type(refused), refused.field) == (InvalidArgument, "rank")
    assert on_a_command_line(refused) == "--rank: must be at least 1"
    failed = of_a_local_run(service_errors.FailedPrecondition("no config.json", reason="NO_FILE"))
    assert (failed.message, failed.reason) == ("no config.json", "NO_FILE")


@pytest.mark.parametrize(
    ("field", "message", "expected"),
    [
        ("inputs[2].text", "inputs[2].text: is empty", ("inputs[12].text", "text 13: is empty")),
        ("inputs[2].text", "is empty", ("inputs[12].text", "is empty")),
        ("model", "model: is unknown", ("model", "model: is unknown")),
    ],
)
def test_the_error_of_a_later_piece_counts_all_texts(
    field: str, message: str, expected: tuple[str, str]
) -> None:
    error = of_a_later_piece(InvalidArgument(message, field=field), 10)
    assert (error.field, on_a_command_line(error)) == expected
