"""Splits as a folder of class folders of images (the ImageFolder layout); classes are the folders' names.

Links are followed and kept as given: class folders that are links, and links to folders and images within them. What
is no image by its suffix is left out and told. Of samples without labels every image counts, however deep it lies, and
folders are no classes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixopt.data.images import SUFFIXES, Images, looks_like_an_image
from mixopt.data.source import Listing, Reading, Source, no_labels
from mixopt.errors import DataError, names
from mixopt.files import natural_key
from mixopt.untrusted import open_regular, refusing
from mixopt.untrusted.stand_ins import ENOUGH

# What folders of splits are called.
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})
# What the one folder around class folders is called where an archive was unpacked beside nothing else.
_AROUND = _SPLITS | {"images", "image", "imgs", "img", "pictures", "photos", "data", "dataset", "jpg", "jpeg", "png"}
# What systems and downloads leave beside images, which nobody misses.
_USUAL = frozenset({"thumbs.db", "desktop.ini", "readme.md", "readme.txt", "license"})


def matches(path: Path) -> bool:
    """Whether the path is a folder."""
    return path.is_dir()


def files(path: Path, reading: Reading) -> Listing:
    """Every image."""
    found = _found(path, reading)
    left_out = tuple(f"{what} left out: {names(shown)}" for what, shown in _left_out(path, found, reading.labelled))
    return Listing(tuple(image for _, image in found.images), left_out, "/".join(found.empty_classes))


def open_source(path: Path, reading: Reading) -> Source:
    """List the images.

    Raises:
        DataError: No class folders with images in it, or no images where labels are not read.
    """
    found = _found(path, reading)
    if not found.images:
        wanted = "one folder of images per class" if reading.labelled else "images in it"
        raise DataError(f"{path}: the split is empty; expected {wanted}")
    images = Images(lambda index: found.images[index][1], lambda index: str(found.images[index][1]))
    if not reading.labelled:
        nested = any(image.parent != path for _, image in found.images)
        notices = ["the names of its folders are not taken as classes"] if nested else []
        labels = no_labels(len(found.images))
        return Source(labels, None, images.load, converted=lambda: [*notices, *images.notices()])
    # Plainly sorted, not naturally: this is how ImageFolder numbers the classes that a model was trained with.
    classes = sorted(found.classes)
    number = {name: index for index, name in enumerate(classes)}
    labels = np.array([number[label] for label, _ in found.images], dtype=np.int64)
    return Source(labels, tuple(classes), images.load, converted=images.notices)


@dataclass(frozen=True)
class _Found:
    """What lies in a split's folder.

    Attributes:
        classes: The names of the class folders; none where labels are not read.
        images: ``(class, file)`` in natural order.
        others: Files that are no images by their suffix, or lie in no class folder.
        again: Links to folders that the same class has already.
        lost: Images that are none: links that lead nowhere, folders, pipes.
        hidden: Images whose name, or a folder of theirs, begins with a dot, as systems and editors leave copies.
    """

    classes: tuple[str, ...]
    images: tuple[tuple[str, Path], ...]
    others: tuple[Path, ...]
    again: tuple[Path, ...]
    lost: tuple[Path, ...]
    hidden: tuple[Path, ...]

    @property
    def empty_classes(self) -> list[str]:
        """Class folders without an image."""
        return sorted(set(self.classes) - {label for label, _ in self.images})


def _found(path: Path, reading: Reading) -> _Found:
    classes: list[str] = []
    images: list[tuple[str, Path]] = []
    others: list[Path] = []
    again: list[Path] = []
    hidden: list[Path] = []
    with refusing(DataError, str(path), found="a folder in it cannot be listed", cure="check its permissions"):
        for entry in _class_folders(path, others) if reading.labelled else (path,):
            classes += [entry.name] if reading.labelled else []
            for file in _files_below(entry, again):
                if any(part.startswith(".") for part in file.relative_to(entry).parts):
                    hidden += [file] if file.suffix.lower() in SUFFIXES else []
                elif file.suffix.lower() in SUFFIXES:
                    images.append((entry.name, file))
                else:
                    others.append(file)

    if len(classes) > 1 and {name.lower() for name in classes} <= _SPLITS and _are_deep(path, images):
        shown = sorted(classes)
        raise DataError(f"{path}: holds the splits {names(shown)}; name one, such as {path / shown[-1]}")
    if len(classes) == 1 and classes[0].lower() in _AROUND and _are_deep(path, images):
        raise DataError(f"{path}: its class folders lie one further down; name that folder: {path / classes[0]}")
    lost = [image for _, image in images if not image.is_file()] if reading.skips else []
    images = [item for item in images if item[1] not in set(lost)]
    images.sort(key=lambda item: natural_key(item[1].relative_to(path).as_posix()))
    rest = (tuple(sorted(each)) for each in (others, again, lost, hidden))
    return _Found(tuple(classes), tuple(images), *rest)


def _class_folders(path: Path, others: list[Path]) -> Iterator[Path]:
    for entry in path.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_symlink() and not entry.exists():
            raise DataError(f"{entry}: a link that leads nowhere; correct or remove it")
        if entry.is_dir():
            yield entry
        else:
            others.append(entry)


def _are_deep(path: Path, images: Sequence[tuple[str, Path]]) -> bool:
    """Whether every image lies in a folder within a folder, as in one of classes within one of a split."""
    return bool(images) and all(len(image.relative_to(path).parts) > 2 for _, image in images)


def _files_below(folder: Path, again: list[Path]) -> Iterator[Path]:
    """Every file of a folder and those in it, each folder once; one that cannot be listed is an error, not empty."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be listed ({error.strerror}); check its permissions") from error

    seen: set[tuple[int, int]] = set()
    for place, below, found in os.walk(folder, onerror=fail, followlinks=True):
        state = os.stat(place)
        if (state.st_dev, state.st_ino) in seen:
            # A link back, or a second one: without end, or the same images twice.
            again.append(Path(place))
            below.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        below.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        yield from (Path(place) / name for name in found)


def _left_out(path: Path, found: _Found, labelled: bool) -> Iterator[tuple[str, list[str]]]:
    """What is not taken: of what kind, and its names."""

    def shown(kind: str, kinds: str, files: Sequence[Path]) -> Iterator[tuple[str, list[str]]]:
        if files:
            what = f"1 {kind}" if len(files) == 1 else f"{len(files):,} {kinds}"
            yield what, [file.relative_to(path).as_posix() for file in files]

    others = [file for file in found.others if file.name.lower() not in _USUAL and not file.name.startswith(".")]
    beside = [file for file in others if file.parent == path and file.suffix.lower() in SUFFIXES]
    strange = [file for file in others if file not in set(beside) and _is_image(file)]
    rest = [file for file in others if not (labelled and file.parent == path) and file not in set(strange)]
    yield from shown("image beside the class folders", "images beside the class folders", beside)
    yield from shown(
        "file that begins as images do, without a suffix that is known for one",
        "files that begin as images do, without a suffix that is known for one",
        strange,
    )
    yield from shown("file that is no image", "files that are no images", rest)
    if labelled:
        yield from shown("link to a folder that its class has", "links to folders that their class has", found.again)
    else:
        yield from shown("link to a folder that is in it", "links to folders that are in it", found.again)
    yield from shown("image that is not there", "images that are not there", found.lost)
    yield from shown("hidden image", "hidden images", found.hidden)
    empty = [path / name for name in found.empty_classes]
    yield from shown("class folder without an image", "class folders without images", empty)


def _is_image(file: Path) -> bool:
    try:
        with open_regular(file) as stream:
            return looks_like_an_image(stream.read(ENOUGH))
    except (OSError, ValueError):
        return False
