"""``.jsonl`` splits: a JSON object per line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mixopt.data.jsonl import open_source
from mixopt.data.source import Reading, Source
from mixopt.errors import DataError


def opened(folder: Path, content: str | bytes) -> Source:
    path = folder / "split.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return open_source(path, Reading())


def test_integer_labels_have_no_classes(tmp_path: Path) -> None:
    source = opened(tmp_path, '{"text": "a", "label": 3}\n{"label": 0, "text": "b", "more": [1, {"deep": null}]}\n')
    assert source.classes is None
    assert source.labels.tolist() == [3, 0]
    assert source.load(1) == {"text": "b", "more": [1, {"deep": None}]}, "all but the label"


def test_text_labels_are_sorted_classes(tmp_path: Path) -> None:
    source = opened(tmp_path, "\n".join(json.dumps({"label": label}) for label in ("wren", "owl", "Ärger", "owl")))
    assert source.classes == ("owl", "wren", "Ärger")
    assert source.labels.tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_marks_empty_lines_and_unusual_separators(tmp_path: Path, end: str) -> None:
    lines = [
        "\ufeff" + json.dumps({"label": 0, "text": "ä"}, ensure_ascii=False),
        "",
        "  ",
        '{"label": 1, "text": "\u2028"}',
        "",
    ]
    source = opened(tmp_path, end.join(lines))
    assert [source.load(number)["text"] for number in range(2)] == ["ä", "\u2028"]
    assert [source.where(number) for number in range(2)] == [", line 1", ", line 4"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"label": 1', r'not JSON \(.*\); expected a JSON object with a "label"'),
        ("[1, 2]", r'expected a JSON object with a "label", found a list'),
        ("7", "found a int"),
        ('{"text": "a", "lable": 1}', "found the fields text, lable"),
        ("{}", "found the fields none"),
        ('{"label": 1.0}', 'expected "label" as an integer from 0 on or a text, found 1.0'),
        ('{"label": true}', "found True"),
        ('{"label": null}', "found None"),
        ('{"label": -1}', "found -1"),
        ('{"label": 99999999999999999999}', "found 99999999999999999999"),
        ('{"label": "two"}', "the label is 'two', but 0 in line 1; expected either integers or texts"),
        (b'{"label": 1, "text": "\xff"}', r"not UTF-8 text \(invalid start byte\)"),
        ("[" * 200_000, "not JSON"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str | bytes, says: str) -> None:
    wrong = line if isinstance(line, bytes) else line.encode()
    with pytest.raises(DataError, match=says) as caught:
        opened(tmp_path, b'{"label": 0}\n\n' + wrong + b"\n")
    assert str(caught.value).startswith(f"{tmp_path / 'split.jsonl'}, line 3: ")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_no_records(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="the split is empty; expected one JSON object per line"):
        opened(tmp_path, content)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixopt.data.jsonl._LONGEST", 100)
    path = tmp_path / "x.jsonl"
    path.write_text('{"label": 0}\n' + '{"label": 1, "text": "' + "x" * 200 + '"}\n')
    with pytest.raises(DataError, match=r"x\.jsonl, line 2: longer than 100 bytes; expected one record"):
        open_source(path, Reading())
