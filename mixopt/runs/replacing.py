"""What a run or a command may replace: what mixopt wrote itself, and nothing that it reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mixopt.errors import RunError, names
from mixopt.untrusted import READER_ERRORS, open_regular
from mixopt.weights import saving

# What stands near the beginning of a file that mixopt wrote, however damaged it may be since: by name, or by suffix.
_MARKS = {
    "recipe.json": ('"batchnorm"',),
    "report.json": ('"methods"',),
    "open_clip_config.json": ('"model_cfg"',),
    "README.md": ("- mixopt\n",),
    "run.toml": ("models = ",),
    "study.journal": ('{"op_code"',),
    saving.STATISTICS_FILE: (f'"{saving.STATISTICS_KEY}":"',),
    ".safetensors": (f'"{saving.METADATA_KEY}":"',),
    ".yaml": ("merge_method: linear",),
    "diagnosis.json": ('"checkpoints"',),
    ".html": ('content="mixopt"',),
    ".pdf": ("/Creator (mixopt)",),
    ".png": ("mixopt",),
}
_BEGINNING = 2**20


def check_replaceable(target: Path, kind: str, inputs: Iterable[Path], option: str) -> None:
    """Refuse to write over what is read, or over what mixopt did not write.

    Args:
        target: The file to write.
        kind: Of what is written: ``.safetensors``, ``.yaml``, ``.html``, ``.pdf`` or ``.png``.
        inputs: Files that are read.
        option: Where it was named, for messages.

    Raises:
        RunError: The target is one of them, or somebody else's.
    """
    if not target.exists() and not target.is_symlink():
        return
    for path in inputs:
        if is_same(target, path):
            raise RunError(
                f"{option} {target}: is {path}, which is read here; choose another file, or --force to replace it"
            )
    if not _is_own(target, _MARKS[kind]):
        raise RunError(
            f"{option} {target}: already there, and no {kind} file of mixopt's; choose another file, or --force"
        )


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path], out: Path) -> None:
    """Refuse a run folder in which the run would write over what it reads, or over what mixopt did not write.

    Args:
        outputs: The files that it will write.
        inputs: Files and folders that it reads.
        out: The run folder, for messages.

    Raises:
        RunError: Names them.
    """
    there = [path for path in outputs if path.exists()]
    read = list(inputs)
    taken = [path for path in there if any(is_same(path, each) for each in read)]
    strange = [path for path in there if path not in taken and not _is_own(path, _marks_of(path))]
    for paths, why in ((taken, "which the run reads"), (strange, "which mixopt did not write")):
        if paths:
            raise RunError(
                f"{out}: the run would replace {names(path.name for path in paths)}, {why}; choose another --out, or "
                "--force to replace"
            )


def is_same(one: Path, other: Path) -> bool:
    """Whether two paths are one file, through links too."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _marks_of(path: Path) -> tuple[str, ...]:
    return _MARKS.get(path.name, _MARKS.get(path.suffix, ()))


def _is_own(path: Path, marks: tuple[str, ...]) -> bool:
    """Whether mixopt wrote a file, by what stands in it; of a file that is cut short before that, nothing is lost."""
    try:
        with open_regular(path) as stream:
            content = stream.read(_BEGINNING)
    except READER_ERRORS:
        return False
    return any(mark.encode() in content or mark.encode().startswith(content) for mark in marks)
