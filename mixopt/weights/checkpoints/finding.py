"""Which files and folders of a folder are its checkpoints."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixopt.errors import CheckpointError, listing, names, short
from mixopt.files import natural_key
from mixopt.untrusted import refusing
from mixopt.weights.checkpoints import sharded
from mixopt.weights.checkpoints.folders import MAIN, is_checkpoint_folder, is_side_file, main_file, shards_in

# How far below the folder checkpoints are looked for where none lie at its top: lightning_logs/version_0/checkpoints/.
_DEEPEST = 4

# How files of models end that are not looked for.
_OTHERS = (".pkl", ".pickle", ".h5", ".hdf5", ".keras", ".onnx", ".msgpack", ".gguf", ".ggml", ".t7", ".pth.zip")
_RENAME = " (a .pkl that torch.save wrote is read once it is called .pt)"

Matches = Callable[[Path], bool]


@dataclass(frozen=True)
class Found:
    """The checkpoints of a folder.

    Attributes:
        paths: Files, or folders that are one checkpoint each, in natural name order.
        notices: What was looked for further down, left out, or counted once.
    """

    paths: tuple[Path, ...]
    notices: tuple[str, ...] = ()


def find(directory: Path, patterns: Sequence[str], besides: Path | None, is_file_of_one: Matches) -> Found:
    """The checkpoints of a folder.

    Args:
        directory: The folder to look in.
        patterns: Globs or names relative to it, each of which must match. Without any, every checkpoint at its top, or
            where there is none, those of the first level below that has some.
        besides: A checkpoint that is not looked for, the base.
        is_file_of_one: Whether a path has the name of a checkpoint file.

    Raises:
        CheckpointError: The folder is missing, or patterns that match no checkpoint.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such directory; --models takes the folder with the checkpoints")
    if wrong := [pattern for pattern in patterns if not pattern or Path(pattern).is_absolute()]:
        raise CheckpointError(f"{directory}: expected patterns relative to this folder, got {wrong[0]!r}")

    def is_one(path: Path) -> bool:
        if path.name.startswith(".") or _is_same(path, besides):
            return False
        return is_checkpoint_folder(path) or (path.is_file() and not is_side_file(path) and is_file_of_one(path))

    with refusing(CheckpointError, str(directory), found="cannot be searched", cure="correct --ingredients"):
        if patterns:
            found, notices = _matching(directory, patterns, is_one, besides)
        else:
            found, notices = _usual(directory, is_one, is_file_of_one, besides)
    whole = _with_indexes(found, besides)
    return _counted_once(directory, whole, notices)


def _matching(
    directory: Path, patterns: Sequence[str], is_one: Matches, besides: Path | None
) -> tuple[set[Path], list[str]]:
    notices: list[str] = []
    found: set[Path] = set()
    problems = []
    for pattern in patterns:
        # A name that is there is meant as it stands, whatever signs of a glob are in it.
        named = directory / pattern
        matched = {named} if os.path.lexists(named) else set(directory.glob(pattern))
        some = {path for path in matched if is_one(path)}
        if not some and any(_is_same(path, besides) for path in matched):
            notices.append(f"ingredients {pattern!r} is the base, and stays that alone")
        elif not some:
            problems.append(_nothing(directory, pattern, matched, is_one))
        found |= some
    if problems:
        raise CheckpointError(listing(f"{directory}: ingredients that are not there", problems))
    inside = {path for path in found if path.parent in found}
    return found - inside, notices


def everything_below(directory: Path, is_file_of_one: Matches) -> list[Path]:
    """Every checkpoint file in a folder and the folders below."""
    found = {path for path in directory.rglob("*") if path.is_file() and is_file_of_one(path)}
    found = {path for path in found if not path.name.startswith(".") and not is_side_file(path)}
    return _in_order(directory, _with_indexes(found, None))


def _nothing(directory: Path, pattern: str, matched: set[Path], is_one: Matches) -> str:
    """Why a pattern gives no checkpoint, and what may have been meant."""
    if not matched:
        every = [path.name for path in directory.iterdir() if is_one(path)]
        near = [name for name in every if name.startswith(f"{pattern}.")]
        near = near or difflib.get_close_matches(pattern, every, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        if "," in pattern and any(list(directory.glob(part.strip())) for part in pattern.split(",") if _is_plain(part)):
            hint = "; a comma is part of a name: give each with an --ingredients of its own"
        return f"ingredients {pattern!r} matches nothing{hint}"
    first = min(matched, key=lambda path: natural_key(path.name))
    if first.is_dir():
        if problem := shards_in(first):
            return problem
        below = sorted((path for path in first.iterdir() if is_one(path)), key=lambda path: natural_key(path.name))
        if below:
            return f"ingredients {pattern!r} matches folders; name what is in them, such as {pattern}/{below[0].name}"
    what = "is a link to nothing" if first.is_symlink() and not first.exists() else "is no ingredient's checkpoint"
    return f"ingredients {pattern!r}: {first.name} {what}"


def _is_plain(part: str) -> bool:
    """Whether a part of a pattern is a pattern itself."""
    return bool(part.strip()) and not Path(part.strip()).is_absolute()


def _usual(
    directory: Path, is_one: Matches, is_name_of_one: Matches, besides: Path | None
) -> tuple[set[Path], list[str]]:
    """What a folder holds at the first level that holds anything."""
    level, shards = [directory], []
    for depth in range(_DEEPEST):
        inside = [path for folder in level for path in _entries(folder) if not _is_same(path, besides)]
        _check_links(directory, inside, is_name_of_one)
        found = {path for path in inside if is_one(path)}
        shards += [problem for folder in level if (problem := shards_in(folder))]
        folders = [path for path in inside if path.is_dir() and path not in found and not _is_run(path)]
        if depth == 0:
            found = _of_top(directory, found)
        if found:
            return found, _told(directory, depth, found, folders, is_one)
        level = folders
    if shards:
        raise CheckpointError(listing(f"{directory}: no checkpoint that can be read", shards))
    return set(), []


def others_in(directory: Path) -> str:
    """Names the files at the top of a folder that are models of other kinds by their suffix; empty for none."""
    found = [path for path in _entries(directory) if path.is_file() and path.name.lower().endswith(_OTHERS)]
    shown = names(path.name for path in _in_order(directory, found))
    pickles = any(path.name.lower().endswith((".pkl", ".pickle")) for path in found)
    return f"{shown}{_RENAME if pickles else ''}"


def _check_links(directory: Path, entries: Iterable[Path], is_name_of_one: Matches) -> None:
    """Refuse links to nothing in a checkpoint's place, as a cache leaves them where its files were removed.

    Raises:
        CheckpointError: Names all of them.
    """
    files = [path for path in entries if is_name_of_one(path) and not is_side_file(path)]
    files += [path / name for path in entries if path.is_dir() for name in MAIN]
    lost = [path.relative_to(directory).as_posix() for path in files if path.is_symlink() and not path.exists()]
    if lost:
        raise CheckpointError(
            f"{directory}: links to nothing in place of checkpoints: {names(lost)}; correct or remove them, or name "
            "the others with --ingredients"
        )


def _of_top(directory: Path, found: set[Path]) -> set[Path]:
    """At the top, files rather than folders; but beside a trainer's checkpoints, a final model is one more."""
    files = {path for path in found if not path.is_dir()}
    final = main_file(directory)
    return files if files - {final} else found


def _told(directory: Path, depth: int, found: set[Path], folders: Iterable[Path], is_one: Matches) -> list[str]:
    told = []
    taken = [path.relative_to(directory).as_posix() for path in _in_order(directory, found)]
    if depth > 0 or any(path.is_dir() for path in found):
        told.append(f"{directory}: checkpoints are taken from the folders below: {names(taken, 8)}")
    if depth > 0:
        return told
    if unread := others_in(directory):
        told.append(f"{directory}: files with a suffix that is not read are left out: {unread}")
    left = [path for path in _entries(directory) if path.is_dir() and path not in found and is_one(path)]
    left += [path for path in folders if path not in left and any(is_one(each) for each in _entries(path))]
    if left:
        shown = names(path.name for path in _in_order(directory, left))
        told.append(f"{directory}: folders with checkpoints below are left out ({shown}); --ingredients names others")
    return told


def _entries(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's of mixopt."""
    return (folder / "run.toml").is_file()


def _with_indexes(found: set[Path], besides: Path | None) -> set[Path]:
    """Parts of a sharded checkpoint give way to their index.

    Raises:
        CheckpointError: A part without its index, or one that two indexes list.
    """
    whole = set(found)
    folders = {path.parent for path in found if not path.is_dir()}
    indexes = {
        path
        for folder in folders
        for suffix in sharded.SUFFIXES
        for path in folder.glob(f"*{suffix}")
        if path.is_file() and not path.name.startswith(".")
    }
    claimed: dict[Path, Path] = {}
    for index in sorted(indexes):
        parts = set(sharded.parts_of(index))
        # An index that a pattern missed still claims its parts.
        if index in found or (parts & found and not _is_same(index, besides)):
            whole.add(index)
        if twice := parts & claimed.keys():
            part = min(twice)
            raise CheckpointError(f"{index}: lists {part.name}, as {claimed[part]} does; remove one of the two")
        claimed |= dict.fromkeys(parts, index)
    whole -= claimed.keys()
    for path in sorted(whole):
        if (absent := sharded.index_of(path)) is not None and not absent.is_file():
            raise CheckpointError(
                f"{path}: one of the parts of a sharded checkpoint, whose index {absent.name} is not beside it; copy "
                "the index from where it was trained"
            )
    return whole


def _counted_once(directory: Path, found: set[Path], notices: list[str]) -> Found:
    """Several names of one file, by links, are one checkpoint."""
    first: dict[tuple[int, int], Path] = {}
    kept = []
    for path in _in_order(directory, found):
        file = main_file(path) if path.is_dir() else path
        known: Path = path
        if file is not None:
            stat = file.stat()
            known = first.setdefault((stat.st_dev, stat.st_ino), path)
        if known == path:
            kept.append(path)
        else:
            notices.append(f"{path.name}: the same file as {short(known.name)} by a link; counted once")
    return Found(tuple(kept), tuple(notices))


def _in_order(directory: Path, paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural_key(path.relative_to(directory).as_posix()))


def _is_same(path: Path, besides: Path | None) -> bool:
    return besides is not None and path.exists() and besides.exists() and path.samefile(besides)
