"""Class folders: links are followed, and nothing is left out in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from mixopt.data import open_split
from mixopt.data.folder import files, open_source
from mixopt.data.source import Reading
from mixopt.errors import DataError
from mixopt.values.samples import Encoding
from tests.listening import Recorder

ENCODING = Encoding(lambda image: {"level": int(image[0, 0, 0])}, lambda arrays: arrays["level"], "levels")


def draw(path: Path, level: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (level,) * 3).save(path)
    return path


def found(split: Path) -> list[str]:
    return [file.relative_to(split).as_posix() for file in files(split, Reading()).files]


def test_linked_folders_and_images_are_followed_and_kept_as_given(tmp_path: Path) -> None:
    draw(tmp_path / "store" / "cats" / "1.png")
    draw(tmp_path / "store" / "more" / "deep" / "2.png")
    draw(tmp_path / "store" / "3.png")
    split = tmp_path / "split"
    (split / "dog").mkdir(parents=True)
    (split / "cat").symlink_to(tmp_path / "store" / "cats")
    (split / "dog" / "more").symlink_to(tmp_path / "store" / "more")
    (split / "dog" / "3.png").symlink_to(tmp_path / "store" / "3.png")
    assert found(split) == ["cat/1.png", "dog/3.png", "dog/more/deep/2.png"]
    assert files(split, Reading()).left_out == ()
    theirs = ImageFolder(str(split))
    assert sorted(Path(path) for path, _ in theirs.samples) == sorted(files(split, Reading()).files)


def test_links_back_end_and_are_told(tmp_path: Path) -> None:
    split = tmp_path / "split"
    draw(split / "cat" / "a" / "1.png")
    (split / "cat" / "a" / "back").symlink_to(split / "cat")
    (split / "cat" / "b").symlink_to(split / "cat" / "a")
    assert found(split) == ["cat/a/1.png"]
    (told,) = files(split, Reading()).left_out
    assert told == "2 links to folders that their class has left out: cat/a/back, cat/b"


@pytest.mark.parametrize("place", ["split/dog", "split/cat/lost.png"])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, place: str) -> None:
    draw(tmp_path / "split" / "cat" / "1.png")
    (tmp_path / place).symlink_to(tmp_path / "moved")
    with pytest.raises(DataError, match=rf"{place}: a link that leads nowhere; correct or remove it"):
        open_split(tmp_path / "split", "test", ENCODING, classnames=None, cache=tmp_path / "cache")


def test_what_is_left_out_is_told_each_time(tmp_path: Path) -> None:
    split = tmp_path / "split"
    for name in ("cat/1.png", "dog/2.png", "dog/3.JPG"):
        draw(split / name)
    draw(split / "4.png")
    draw(split / "cat" / "5.png").rename(split / "cat" / "5")
    draw(split / "dog" / "6.png").rename(split / "dog" / "6.heic")
    (split / "dog" / "notes.txt").write_text("seen at noon")
    (split / "README.md").write_text("photos")
    (split / "cat" / ".DS_Store").write_bytes(b"x")
    (split / "empty").mkdir()
    expected = [
        "1 image beside the class folders left out: 4.png",
        "2 files that begin as images do, without a suffix that is known for one left out: cat/5, dog/6.heic",
        "1 file that is no image left out: dog/notes.txt",
        "1 class folder without an image left out: empty",
    ]
    for _ in range(2):
        heard = Recorder()
        open_split(split, "test", ENCODING, classnames=None, cache=tmp_path / "cache", listener=heard.listener)
        assert heard.warnings == [f"{split}: {text}" for text in expected]


def test_hidden_copies_of_images_are_no_images(tmp_path: Path) -> None:
    """As notebooks (.ipynb_checkpoints) and macOS (._) leave them among the images."""
    split = tmp_path / "split"
    for name in ("cat/1.png", "dog/2.png"):
        draw(split / name)
    (split / "dog" / "._2.png").write_bytes(b"\0\5\x16\7")
    draw(split / "cat" / ".ipynb_checkpoints" / "1-checkpoint.png")
    assert found(split) == ["cat/1.png", "dog/2.png"]
    (told,) = files(split, Reading()).left_out
    assert told == "2 hidden images left out: cat/.ipynb_checkpoints/1-checkpoint.png, dog/._2.png"


def test_class_folders_that_lie_one_further_down_are_named(tmp_path: Path) -> None:
    split = tmp_path / "split"
    for name in ("cat/1.png", "dog/2.png"):
        draw(split / "images" / name)
    with pytest.raises(DataError, match=r"its class folders lie one further down; name that folder: .*split/images"):
        files(split, Reading())
    assert found(split / "images") == ["cat/1.png", "dog/2.png"]


def test_a_class_folder_without_images_keeps_its_number(tmp_path: Path) -> None:
    """The model was trained with that number, whatever this split has of the class."""
    split = tmp_path / "split"
    for name in ("ant", "cat"):
        draw(split / name / "1.png")
    before = open_split(split, "test", ENCODING, classnames=None, cache=tmp_path / "cache")
    assert sorted(before.labels.tolist()) == [0, 1]
    (split / "bee").mkdir()
    assert open_source(split, Reading()).classes == ("ant", "bee", "cat")
    after = open_split(split, "test", ENCODING, classnames=None, cache=tmp_path / "cache")
    assert sorted(after.labels.tolist()) == [0, 2]


def test_a_folder_of_something_else_is_no_class_of_the_models(tmp_path: Path) -> None:
    split = tmp_path / "split"
    for level, name in enumerate(("ant", "cat")):
        draw(split / name / "1.png", level)
    (split / "boxes").mkdir()
    (split / "boxes" / "1.xml").write_text("<box/>")
    opened = open_split(split, "test", ENCODING, classnames=["cat", "ant"], cache=tmp_path / "cache")
    assert dict(zip(opened.arrays["level"].tolist(), opened.labels.tolist(), strict=True)) == {0: 1, 1: 0}
