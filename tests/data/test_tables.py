"""Files of records: which column is what, labels, texts, and images by path or by their bytes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixopt.data import csv, jsonl, open_split, parquet
from mixopt.data import datasets as saved
from mixopt.data.fields import roles_of
from mixopt.data.source import Reading, Source
from mixopt.data.table import inside
from mixopt.errors import DataError
from mixopt.values.samples import Encoding
from tests.listening import Recorder

HERE = Path("split.csv")


def read_csv(folder: Path, content: str | bytes, name: str = "split.csv", **fields: str) -> Source:
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return csv.open_source(folder / name, Reading(fields))


def records(source: Source) -> list[Any]:
    return [source.load(number) for number in range(len(source.labels))]


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (level,) * 3).save(stream, "PNG")
    return stream.getvalue()


# Which column is what


@pytest.mark.parametrize(
    ("columns", "label", "texts"),
    [
        (["text", "label"], "label", {"text": "text"}),
        (["idx", "Sentence", "Label"], "Label", {"text": "Sentence"}),
        (["premise", "hypothesis", "labels"], "labels", {"text": "premise", "text_pair": "hypothesis"}),
        (["question", "sentence", "label"], "label", {"text": "question", "text_pair": "sentence"}),
        (["text", "text_pair", "y"], "y", {"text": "text", "text_pair": "text_pair"}),
        (["review", "text", "target"], "target", {"text": "text"}),
        (["sentence", "review", "class"], "class", {}),
        (["a", "label"], "label", {}),
    ],
)
def test_usual_names_say_what_a_column_is(columns: Sequence[str], label: str, texts: dict[str, str]) -> None:
    roles = roles_of(HERE, columns, {})
    assert (roles.label, roles.texts) == (label, texts)


def test_the_user_says_what_a_column_is() -> None:
    roles = roles_of(HERE, ["title", "text", "stars", "label"], {"text": "title", "label": "stars"})
    assert (roles.label, roles.texts, roles.notices) == ("stars", {"text": "title"}, ())
    with pytest.raises(DataError, match=r"--fields text=titel: unknown column 'titel'; did you mean 'title'\?"):
        roles_of(HERE, ["title", "label"], {"text": "titel"})


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        (
            ["labels", "target", "text"],
            r"labels and target may both be the label .*labels, target, text.*--fields",
        ),
        (
            ["text", "lable"],
            r'expected a column "label" .*the columns text, lable; say which: --fields label=NAME',
        ),
    ],
)
def test_doubt_about_the_label_is_an_error(columns: Sequence[str], says: str) -> None:
    with pytest.raises(DataError, match=says):
        roles_of(HERE, columns, {})


def test_another_column_that_may_be_the_label_is_told() -> None:
    (told,) = roles_of(HERE, ["text", "label", "y"], {}).notices
    assert told == "the label is label, not y (--fields label=y says otherwise)"


def test_a_text_in_doubt_is_an_error_of_the_family_that_looks_for_it(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("sentence,review,label\na,b,0\n")
    encoding = Encoding(lambda record: {"n": len(record["text"])}, lambda arrays: arrays, "lengths")
    with pytest.raises(DataError, match=r"looks for 'text', the record has sentence, review; say which: --fields"):
        open_split(tmp_path / "split.csv", "test", encoding, classnames=None, cache=tmp_path / "cache")
    reading = Reading({"text": "review"})
    split = open_split(
        tmp_path / "split.csv", "test", encoding, classnames=None, cache=tmp_path / "cache", reading=reading
    )
    assert split.arrays["n"].tolist() == [1]


def test_other_fields_are_another_decoded_copy(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("short,long,label\na,bcd,0\n")
    encoding = Encoding(lambda record: {"n": len(record["text"])}, lambda arrays: arrays, "lengths")
    found = [
        open_split(
            tmp_path / "split.csv",
            "test",
            encoding,
            classnames=None,
            cache=tmp_path / "cache",
            reading=Reading({"text": column}),
        ).arrays["n"][0]
        for column in ("short", "long")
    ]
    assert found == [1, 3]


# CSV


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".CSV"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cells_between_commas_semicolons_or_tabs(tmp_path: Path, delimiter: str, suffix: str, end: str) -> None:
    rows = [["text", "label"], ['"a, b; c\td"', "1"], ['"said ""no"""', "0"], ["", ""], ['"two' + end + 'lines"', "2"]]
    text = end.join(delimiter.join(row) for row in rows) + end
    source = read_csv(tmp_path, "\ufeff" + text, f"split{suffix}")
    assert source.labels.tolist() == [1, 0, 2]
    assert source.classes is None
    assert [record["text"] for record in records(source)] == ["a, b; c\td", 'said "no"', f"two{end}lines"]
    assert [source.where(number) for number in range(3)] == [", line 2", ", line 3", ", line 5"]


def test_quotes_that_are_none_are_taken_as_they_stand(tmp_path: Path) -> None:
    source = read_csv(tmp_path, 'sentence\tlabel\n"tis fine\t1\nshe said "no\t0\n', "split.tsv")
    assert [record["text"] for record in records(source)] == ['"tis fine', 'she said "no']
    assert "quotes are taken as they stand, since with them as quotes rows have no one length" in source.converted()


@pytest.mark.parametrize(
    ("labels", "numbers", "classes"),
    [
        (["2", " 0", "1"], [2, 0, 1], None),
        (["2.0", "10.0", "1.0"], [2, 10, 1], None),
        (["1.5", "0.5", "0.5"], [1, 0, 0], ("0.5", "1.5")),
        (["b", "a", "b"], [1, 0, 1], ("a", "b")),
        (["002", "000", "010"], [1, 0, 2], ("000", "002", "010")),
        (["n01", "7", "n02"], [1, 0, 2], ("7", "n01", "n02")),
    ],
)
def test_labels_of_digits_are_numbers(
    tmp_path: Path, labels: list[str], numbers: list[int], classes: tuple[str, ...] | None
) -> None:
    source = read_csv(tmp_path, "\n".join(["text,label", *(f"t,{label}" for label in labels)]))
    assert (source.labels.tolist(), source.classes) == (numbers, classes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", r"split\.csv: the split is empty"),
        ("text,label\n", r"split\.csv: the split is empty"),
        ("text,label\na,0\nb\n", r"split\.csv, line 3: expected 2 cells as in the header, found 1: b"),
        ("text,label\na,0\nb,1,2\n", r"line 3: expected 2 cells as in the header, found 3: b,1,2"),
        ("text,label\na,0\nb,1\nc,n/a\n", r"line 4: the label is 'n/a', but 0 in line 2; expected either integers or"),
        ("text,label\na,0\nb,\n", r"line 3: the \"label\" is empty"),
        ("text,label\na,-1\n", r""),
        ("text,text,label\na,b,0\n", r"its header names 'text' more than once"),
        ("a;b,c\n1;2,3\n", r"its header has commas and semicolons|expected a column"),
        ("one,0\ntwo,1\n", r'expected a column "label"'),
        (b"text,label\n\xe4,0\n", r"not UTF-8 text"),
    ],
)
def test_wrong_tables_are_named(tmp_path: Path, text: str | bytes, says: str) -> None:
    if not says:
        assert read_csv(tmp_path, text).classes == ("-1",)
        return
    with pytest.raises(DataError, match=says):
        read_csv(tmp_path, text)


def test_a_cell_may_be_as_long_as_a_document(tmp_path: Path) -> None:
    source = read_csv(tmp_path, "text,label\n" + "word " * 60_000 + ",0\n")
    assert len(source.load(0)["text"]) == 300_000


# Images


def test_images_by_their_paths(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for level in range(3):
        (tmp_path / "photos" / f"{level}.png").write_bytes(png(level))
    source = read_csv(tmp_path, "filename,label\nphotos/2.png,cat\nphotos/0.png,dog\n./photos/1.png,cat\n")
    assert [image[0, 0, 0] for image in records(source)] == [2, 0, 1]
    assert source.classes == ("cat", "dog")
    listed = csv.files(tmp_path / "split.csv", Reading()).files
    assert [file.name for file in listed] == ["split.csv", "0.png", "1.png", "2.png"]
    assert list(source.converted()) == ["the image is its column filename (--fields image=NAME says otherwise)"]


def test_changed_images_are_another_split(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "split.csv").write_text("image,label\na.png,0\n")
    encoding = Encoding(lambda image: {"n": int(image[0, 0, 0])}, lambda arrays: arrays, "levels")
    found = []
    for level in (1, 2):
        (tmp_path / "a.png").write_bytes(png(level))
        split = open_split(tmp_path / "split.csv", "test", encoding, classnames=None, cache=tmp_path / "cache")
        found.append(int(split.arrays["n"][0]))
    assert found == [1, 2]


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png", "b/../../a.png", "https://x.org/a.png", "a\0.png"])
def test_names_that_lead_out_of_the_folder_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(ValueError, match=r"outside|an address|no name"):
        inside(tmp_path / "data", name)
    if "\0" not in name:
        with pytest.raises(DataError, match=r"line 2: names the image .*; expected a file below"):
            csv.files(_written(tmp_path / "data" / "split.csv", f"image,label\n{name},0\n"), Reading())


@pytest.mark.parametrize(("name", "cure"), [("b.png", "--bad-samples skip"), ("c\\a.png", "with /")])
def test_an_image_that_is_not_there_is_named_with_its_line(tmp_path: Path, name: str, cure: str) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    path = _written(tmp_path / "split.csv", f"image,label\na.png,0\n{name},1\n")
    with pytest.raises(DataError, match=r"split\.csv, line 3: names the image .*, and there is no file .*; ") as caught:
        csv.files(path, Reading())
    assert str(caught.value).endswith(cure)
    assert csv.files(path, Reading(skips=True)).files == (path, tmp_path / "a.png")


def _written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_name_inside_is_kept_as_given(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert inside(tmp_path, "link/a.png") == tmp_path / "link" / "a.png"
    assert inside(tmp_path, str(tmp_path / "a.png")) == tmp_path / "a.png"


def test_texts_and_images_side_by_side_need_a_word(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(7))
    text = "text,file,label\nhello,a.png,0\n"
    with pytest.raises(DataError, match=r"may be texts \(column text\) or images \(column file\); say which: --fields"):
        read_csv(tmp_path, text)
    assert read_csv(tmp_path, text, text="text").load(0)["text"] == "hello"
    assert read_csv(tmp_path, text, image="file").load(0)[0, 0, 0] == 7


def test_a_field_called_file_that_is_no_image_stays_a_field(tmp_path: Path) -> None:
    (tmp_path / "split.jsonl").write_text('{"file": "a.wav", "label": 0}\n')
    source = jsonl.open_source(tmp_path / "split.jsonl", Reading())
    assert source.load(0) == {"file": "a.wav"}
    with pytest.raises(DataError, match=r"line 1: expected an image in file, .*; found 'a\.wav'"):
        jsonl.open_source(tmp_path / "split.jsonl", Reading({"image": "file"}))


# Parquet and saved datasets


def hugging_face(**columns: Any) -> datasets.Dataset:
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["cat", "dog"]),
        "text": datasets.Value("string"),
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features({name: features[name] for name in columns}))


@pytest.mark.parametrize("kind", ["parquet", "saved"])
def test_images_as_hugging_face_writes_them(tmp_path: Path, kind: str) -> None:
    images = [{"bytes": png(level), "path": f"{level}.png"} for level in (5, 6, 7)]
    data = hugging_face(image=images, label=[1, 0, 1])
    if kind == "parquet":
        data.to_parquet(tmp_path / "split.parquet")
        source = parquet.open_source(tmp_path / "split.parquet", Reading())
    else:
        data.save_to_disk(tmp_path / "split")
        source = saved.open_source(tmp_path / "split", Reading())
    assert [image[0, 0, 0] for image in records(source)] == [5, 6, 7]
    assert (source.labels.tolist(), source.classes) == ([1, 0, 1], ("cat", "dog"))


def test_listing_images_by_their_bytes_reads_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"image": [png(3), png(4)], "label": [0, 1]}), tmp_path / "split.parquet")

    def refuse(*_: Any) -> None:
        raise AssertionError("read as a whole")

    monkeypatch.setattr(pq.ParquetFile, "read", refuse)
    assert parquet.files(tmp_path / "split.parquet", Reading()).files == (tmp_path / "split.parquet",)


def test_images_by_their_paths_in_parquet(tmp_path: Path) -> None:
    for level in (3, 4):
        (tmp_path / f"{level}.png").write_bytes(png(level))
    pq.write_table(pa.table({"path": ["4.png", "3.png"], "label": [0, 1]}), tmp_path / "split.parquet")
    listed = parquet.files(tmp_path / "split.parquet", Reading()).files
    assert [file.name for file in listed] == ["split.parquet", "3.png", "4.png"]
    assert [image[0, 0, 0] for image in records(parquet.open_source(tmp_path / "split.parquet", Reading()))] == [4, 3]


def test_without_pyarrow_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "split.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow: pip install 'mixopt\[parquet\]'"):
        parquet.open_source(tmp_path / "split.parquet", Reading())


def test_columns_of_bytes_and_of_categories(tmp_path: Path) -> None:
    columns = {"img": [png(3), png(4)], "y": pa.array(["b", "a"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "split.parquet")
    source = parquet.open_source(tmp_path / "split.parquet", Reading())
    assert [image[0, 0, 0] for image in records(source)] == [3, 4]
    assert (source.labels.tolist(), source.classes) == ([1, 0], ("a", "b"))


def test_hidden_labels_are_no_labels(tmp_path: Path) -> None:
    hugging_face(text=["a", "b"], label=[0, -1]).to_parquet(tmp_path / "split.parquet")
    with pytest.raises(DataError, match=r'split\.parquet, row 2: expected "label" as an integer from 0 on .* found -1'):
        parquet.open_source(tmp_path / "split.parquet", Reading())


def test_parts_are_one_split_and_one_part_alone_is_told(tmp_path: Path) -> None:
    for part in range(2):
        table = pa.table({"text": [f"{part}a", f"{part}b"], "label": [0, 1]})
        pq.write_table(table, tmp_path / f"train-0000{part}-of-00002.parquet")
    assert [record["text"] for record in records(parquet.open_source(tmp_path, Reading()))] == ["0a", "0b", "1a", "1b"]
    one = parquet.open_source(tmp_path / "train-00000-of-00002.parquet", Reading())
    assert list(one.converted()) == ["one of 2 parts alone; name their folder for all"]
    (tmp_path / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="holds 1 of 2 parts"):
        parquet.open_source(tmp_path, Reading())


def test_several_splits_are_named(tmp_path: Path) -> None:
    data = hugging_face(text=["a", "b"], label=[0, 1])
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"holds several splits \(train, test\); name one, such as .*saved/train"):
        saved.open_source(tmp_path / "saved", Reading())
    assert saved.open_source(tmp_path / "saved" / "test", Reading()).labels.tolist() == [0, 1]
    for name in ("train.parquet", "test.parquet"):
        data.to_parquet(tmp_path / "files" / name)
    with pytest.raises(DataError, match=r"holds several splits \(test\.parquet, train\.parquet\); name a file"):
        parquet.open_source(tmp_path / "files", Reading())


def test_saved_data_files_stay_in_their_folder(tmp_path: Path) -> None:
    hugging_face(text=["a"], label=[0]).save_to_disk(tmp_path / "saved")
    state = (tmp_path / "saved" / "state.json").read_text()
    (tmp_path / "saved" / "state.json").write_text(state.replace("data-00000", "../data-00000"))
    with pytest.raises(DataError, match=r"state\.json: names '\.\./data-00000.*' as a data file, outside"):
        saved.open_source(tmp_path / "saved", Reading())


@pytest.mark.parametrize("files", [5, None, [], {}])
def test_a_state_without_data_files_is_named(tmp_path: Path, files: Any) -> None:
    hugging_face(text=["a"], label=[0]).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text(json.dumps({"_data_files": files}))
    with pytest.raises(DataError, match=r"saved: its state\.json names no data files"):
        saved.open_source(tmp_path / "saved", Reading())


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(50) + b"PAR1"])
def test_damaged_parquet_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "split.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"split\.parquet: not a readable Parquet file"):
        parquet.open_source(tmp_path / "split.parquet", Reading())


def test_what_was_taken_as_what_is_told_each_time(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("review,target\na,0\nb,1\n")
    encoding = Encoding(lambda record: {"n": np.int64(len(record["text"]))}, lambda arrays: arrays, "lengths")
    for _ in range(2):
        heard = Recorder()
        open_split(
            tmp_path / "split.csv",
            "test",
            encoding,
            classnames=None,
            cache=tmp_path / "cache",
            listener=heard.listener,
        )
        assert heard.infos == [
            f"{tmp_path / 'split.csv'}: the label is its column target (--fields label=NAME says otherwise)",
            f"{tmp_path / 'split.csv'}: the text is its column review (--fields text=NAME says otherwise)",
        ]
