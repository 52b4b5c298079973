"""Reading labelled files: what is understood, and how each mistake is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.common.errors import InvalidArgument
from services.executor.train.data import Span, read_examples
from services.executor.train.options import Task
from services.executor.train.splits import split


def write(directory: Path, name: str, content: str | bytes) -> Path:
    path = directory / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(directory: Path, *rows: Any) -> Path:
    return write(directory, "data.jsonl", "\n".join(json.dumps(row) for row in rows))


def test_csv_with_quotes_commas_newlines_blank_lines_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path, "d.csv", '\ufefftext,label\r\n"a, ""b""\nc", x \r\n\r\nd,y\r\n')
    examples = read_examples(path)
    assert examples.task is Task.SEQUENCE_CLASSIFICATION
    assert examples.labels == ("x", "y")
    assert [(e.text, e.labels, e.where) for e in examples.items] == [
        ('a, "b"\nc', ("x",), "d.csv:2"),
        ("d", ("y",), "d.csv:5"),
    ]


def test_json_lines_with_line_separators_in_a_text_and_integer_labels(tmp_path: Path) -> None:
    path = write(
        tmp_path, "d.jsonl", '{"text": "a\u2028b", "label": 0}\n\n{"text":"c","label":1}\n'
    )
    examples = read_examples(path)
    assert [(e.text, e.labels, e.where) for e in examples.items] == [
        ("a\u2028b", ("0",), "d.jsonl:1"),
        ("c", ("1",), "d.jsonl:3"),
    ]


@pytest.mark.parametrize(
    "content", ["text,label\na,x|y\nb,\nc,x\n", 'text,labels\na,"[""y"",""x""]"\nb,[]\nc,x\n']
)
def test_bars_or_json_lists_make_a_csv_multi_label(tmp_path: Path, content: str) -> None:
    examples = read_examples(write(tmp_path, "d.csv", content))
    assert examples.task is Task.MULTI_LABEL_CLASSIFICATION
    assert [e.labels for e in examples.items] == [("x", "y"), (), ("x",)]


def test_json_lists_are_multi_label_and_a_task_given_overrides_the_guess(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"text": "a", "label": ["x", "y"]}, {"text": "b", "label": "x"})
    assert read_examples(path).task is Task.MULTI_LABEL_CLASSIFICATION
    path = write(tmp_path, "d.csv", "text,label\na,x|y\nb,z\n")
    assert read_examples(path, Task.SEQUENCE_CLASSIFICATION).labels == ("x|y", "z")


def test_values_pairs_and_spans(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, "d.csv", "text,text_pair,value\na,b,1.5\nc,d,-2\n"))
    assert examples.task is Task.REGRESSION
    assert [(e.text_pair, e.value) for e in examples.items] == [("b", 1.5), ("d", -2.0)]
    spans = [{"start": 5, "end": 6, "label": "Q"}, {"start": 0, "end": 2, "label": "P"}]
    expected = (Span(0, 2, "P"), Span(5, 6, "Q"))
    examples = read_examples(jsonl(tmp_path, {"text": "😀b cd e", "spans": spans}))
    assert examples.task is Task.TOKEN_CLASSIFICATION
    assert examples.items[0].spans == expected
    cell = json.dumps(spans).replace('"', '""')
    examples = read_examples(write(tmp_path, "d.csv", f'text,spans\n😀b cd e,"{cell}"\nf,\n'))
    assert [e.spans for e in examples.items] == [expected, ()]


CSV_MISTAKES = [
    (b"text,label\na,x\n\xff,y\n", "d.csv:3"),
    (b"", "d.csv"),
    (b"text,label\n", "d.csv"),
    (b"label\nx\n", "d.csv:1: text"),
    (b"text\na\n", "d.csv:2: label"),
    (b"text,label,label\na,x,y\n", "d.csv:1: label"),
    (b"text,label,value\na,x,1\n", "d.csv:2: value"),
    (b"text,label,colour\na,x,red\n", "d.csv:2: colour"),
    (b"text,label\na,x\nb\n", "d.csv:3: label"),
    (b"text,label\na,x\nb, c,y\n", "d.csv:3: label"),
    (b'text,label\na,x\n"b,y\n', "d.csv:3"),
    (b'text,label\n"a"b,x\n', "d.csv:2"),
    (b'text,label\n"a\nb",x\n ,y\n', "d.csv:4: text"),
    (b"text,label\na,x\nb,\n", "d.csv:3: label"),
    (b"text,label\na,x|\n", "d.csv:2: label"),
    (b"text,label\na,x|x\n", "d.csv:2: label"),
    (b"text,label\na,[x\n", "d.csv:2: label"),
    (b"text,label\na," + b"[" * 100_000, "d.csv:2: label"),
    (b"text,text_pair,label\na,,x\n", "d.csv:2: text_pair"),
    (b"text,value\na,one\n", "d.csv:2: value"),
    (b"text,value\na,nan\n", "d.csv:2: value"),
    (b"text,spans\na,x\n", "d.csv:2: spans"),
    (b"text,label\na,x\nb,x\n", "d.csv"),
    (b"text,labels\na,\nb,\n", "d.csv"),
    (b"text,value\na,1.5\nb,1.5\n", "d.csv"),
]


@pytest.mark.parametrize(("content", "field"), CSV_MISTAKES)
def test_a_malformed_csv_is_refused_by_line_and_column(
    tmp_path: Path, content: bytes, field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_examples(write(tmp_path, "d.csv", content))
    assert caught.value.field == field


def span(start: Any, end: Any, label: Any = "P") -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


JSON_MISTAKES = [
    ([["a"]], "data.jsonl:1"),
    ([{"label": "x"}], "data.jsonl:1: text"),
    ([{"text": 1, "label": "x"}], "data.jsonl:1: text"),
    ([{"text": "\ud800", "label": "x"}], "data.jsonl:1: text"),
    ([{"text": "a", "label": "x"}, {"text": "b"}], "data.jsonl:2: label"),
    ([{"text": "a", "label": True}], "data.jsonl:1: label"),
    ([{"text": "a", "label": 1.5}], "data.jsonl:1: label"),
    ([{"text": "a", "label": [["x"]]}], "data.jsonl:1: label"),
    ([{"text": "a", "label": "\ud800"}], "data.jsonl:1: label"),
    ([{"text": "a", "value": True}], "data.jsonl:1: value"),
    ([{"text": "a", "value": 10**400}], "data.jsonl:1: value"),
    ([{"text": "a", "spans": {}}], "data.jsonl:1: spans"),
    ([{"text": "a", "spans": [[0, 1, "P"]]}], "data.jsonl:1: spans[0]"),
    ([{"text": "a", "spans": [{**span(0, 1), "x": 1}]}], "data.jsonl:1: spans[0]"),
    ([{"text": "a", "spans": [span(0, 2)]}], "data.jsonl:1: spans[0]"),
    ([{"text": "a", "spans": [span(-1, 1)]}], "data.jsonl:1: spans[0]"),
    ([{"text": "a", "spans": [span(1, 1)]}], "data.jsonl:1: spans[0]"),
    ([{"text": "a", "spans": [span(0.0, 1)]}], "data.jsonl:1: spans[0]"),
    ([{"text": "a", "spans": [span(0, 1, "")]}], "data.jsonl:1: spans[0]"),
    ([{"text": "abc", "spans": [span(0, 2), span(1, 3)]}], "data.jsonl:1: spans"),
    ([{"text": "a", "text_pair": "b", "spans": []}], "data.jsonl:1: text_pair"),
    ([{"text": "a", "spans": []}], "data.jsonl"),
]


@pytest.mark.parametrize(("rows", "field"), JSON_MISTAKES)
def test_a_malformed_json_line_is_refused_by_line_and_column(
    tmp_path: Path, rows: list[Any], field: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_examples(jsonl(tmp_path, *rows))
    assert caught.value.field == field


def test_what_is_not_json_not_a_known_suffix_or_not_there_is_refused(tmp_path: Path) -> None:
    paths = [
        write(tmp_path, "a.jsonl", '{"text": '),
        write(tmp_path, "b.jsonl", '{"text": ' + "[" * 100_000),
        write(tmp_path, "a.txt", "a"),
        tmp_path / "b.csv",
    ]
    fields = []
    for path in paths:
        with pytest.raises(InvalidArgument) as caught:
            read_examples(path)
        fields.append(caught.value.field)
    assert fields == ["a.jsonl:1", "b.jsonl:1", "a.txt", "b.csv"]


def test_a_task_that_does_not_fit_the_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_examples(write(tmp_path, "d.csv", "text,value\na,1\n"), Task.TOKEN_CLASSIFICATION)
    assert caught.value.field == "task"


def test_the_split_is_stratified_complete_and_seeded(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "rare" if i % 10 == 0 else "common"} for i in range(100)]
    examples = read_examples(jsonl(tmp_path, *rows))
    train, held_out = split(examples, 0.2, seed=1)
    assert len(held_out) == 20
    assert sum(e.labels == ("rare",) for e in held_out) == 2
    assert sorted(e.text for e in train + held_out) == sorted(e.text for e in examples.items)
    assert split(examples, 0.2, seed=1) == (train, held_out)
    assert split(examples, 0.2, seed=2)[1] != held_out


@pytest.mark.parametrize("held_out", [0.01, 0.3, 0.5])
def test_every_label_keeps_an_example_for_training(tmp_path: Path, held_out: float) -> None:
    sizes = {"one": 1, "two": 2, "three": 3, "many": 9}
    rows = [{"text": f"{k}{i}", "label": k} for k, n in sizes.items() for i in range(n)]
    examples = read_examples(jsonl(tmp_path, *rows))
    for seed in range(20):
        train, kept = split(examples, held_out, seed)
        assert {e.labels[0] for e in train} == set(sizes)
        assert kept


def test_values_are_held_out_over_their_whole_range(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "value": i} for i in range(100)]
    _, held_out = split(read_examples(jsonl(tmp_path, *rows)), 0.2, seed=3)
    assert {int(e.value) // 10 for e in held_out} == set(range(10))


@pytest.mark.parametrize(
    ("rows", "advice"),
    [
        ([{"text": x, "label": x} for x in "abc"], "is the column of labels the right one"),
        ([{"text": str(i), "value": i} for i in range(10)], "11 or more are needed"),
    ],
)
def test_examples_of_which_none_can_be_held_out_are_refused(
    tmp_path: Path, rows: list[Any], advice: str
) -> None:
    with pytest.raises(InvalidArgument, match=advice) as caught:
        split(read_examples(jsonl(tmp_path, *rows)), 0.2, seed=0)
    assert caught.value.field == "data"
