"""Every default of a search against its alternatives, cross-fitted: whole searches, judged on samples that none saw.

    OMP_NUM_THREADS=1 python studies/defaults/searches.py --models DIR --out RUNS/NAME [--folds 2] [--arms ARM;ARM...]
        [OPTION=VALUE ...]
    python studies/defaults/searches.py --show RUNS/NAME.json ...

The selection samples of a pool are divided into five folds, alike in classes. For each of the first so many, every
arm searches with the others as its selection split, held-out fifth and all, and its mix is scored on the fold. Gains
over the default are paired over samples, with standard errors. No test split is opened. What was found goes to
``NAME.json``, fold by fold; the same command again goes on.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mixopt
from mixopt import load_spec, open_objective
from mixopt.errors import DataError
from mixopt.files import write_json
from mixopt.listener import Listener

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]

FOLDS = 5
JUDGING = "judging"
ARMS: dict[str, dict[str, Any]] = {
    "default": {},
    "robust off": {"robust": "off"},
    "refit off": {"refit": "off"},
    "race off": {"race": "off"},
    "cmaes": {"sampler": "cmaes"},
    "random": {"sampler": "random"},
    "from greedy": {"start": "greedy"},
    "from greedy, race off": {"start": "greedy", "race": "off"},
    "from uniform": {"start": "uniform"},
    "from individual": {"start": "individual"},
    "affine 0.1": {"start": "greedy", "space": "affine", "radius": 0.1},
    "affine 0.3": {"start": "greedy", "space": "affine", "radius": 0.3},
    "shared": {"start": "greedy", "space": "shared"},
    "depth": {"start": "greedy", "space": "depth"},
}


def divided(path: Path, out: Path, fold: int) -> tuple[Path, Path]:
    """A selection split's file or folder in two, written to ``out``: all folds but one, and that one.

    Raises:
        DataError: Neither an .npz, nor a .jsonl with labels, nor a folder of class folders.
    """
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            labels, found = arrays["y"], dict(arrays)
        count = len(labels)
        for name, numbers in _parts(labels, fold).items():
            kept = {key: value[numbers] if len(value) == count else value for key, value in found.items()}
            np.savez(out / f"{name}.npz", **kept)
        return out / "rest.npz", out / "fold.npz"
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        for name, numbers in _parts(_numbered([json.loads(line)["label"] for line in lines]), fold).items():
            (out / f"{name}.jsonl").write_text("\n".join(lines[number] for number in numbers) + "\n", encoding="utf-8")
        return out / "rest.jsonl", out / "fold.jsonl"
    if path.is_dir():
        files = sorted(each for each in path.glob("*/*") if each.is_file())
        for name, numbers in _parts(_numbered([each.parent.name for each in files]), fold).items():
            for number in numbers:
                link = out / name / files[number].parent.name / files[number].name
                link.parent.mkdir(parents=True, exist_ok=True)
                if not link.exists():
                    os.symlink(files[number].resolve(), link)
        return out / "rest", out / "fold"
    raise DataError(f"{path}: a study of splits as .npz, .jsonl or a folder of class folders")


def _numbered(labels: Sequence[str]) -> Numbers:
    return np.unique(labels, return_inverse=True)[1]


def _parts(labels: Numbers, fold: int) -> dict[str, Numbers]:
    by_class = np.argsort(labels, kind="stable")
    return {"rest": np.sort(np.delete(by_class, np.s_[fold::FOLDS])), "fold": np.sort(by_class[fold::FOLDS])}


def searched(models: Path, out: Path, fold: int, arms: Sequence[str], options: dict[str, Any]) -> dict[str, Any]:
    """By arm, what its mix does on each sample of a fold, and what that took."""
    whole = load_spec({"models": models, **options})
    if whole.data.validation is None:
        raise DataError(f"{models}: no selection split")
    folder = out / str(fold)
    folder.mkdir(parents=True, exist_ok=True)
    rest, judging = divided(whole.data.validation, folder, fold)
    given: dict[str, Any] = {**options, "data": {"validation": rest, "test": {JUDGING: judging}}}
    found: dict[str, Any] = {}
    for arm in arms:
        run = folder / arm.replace(" ", "-").replace(",", "")
        result = mixopt.search(models, **{**given, **ARMS[arm]}, out=run, listener=Listener(warn=print))
        spec = load_spec({"models": models, **given, "precision": result.report.precision["mode"]})
        objective = open_objective(spec)
        outcomes = objective.score(result.recipe.mix, JUDGING).outcomes
        right = outcomes.predicted == objective.evaluators[JUDGING].split.labels
        row = result.report.row("search")
        found[arm] = {
            "right": right.astype(int).tolist(),
            "losses": [round(each, 5) for each in outcomes.losses.tolist()],
            "images": row.images,
            "notes": {key: row.notes.get(key) for key in ("share", "refit")},
        }
        print(f"fold {fold}, {arm}: {right.mean():.4f} {outcomes.losses.mean():.4f} {row.images:,}", flush=True)
    return found


def shown(paths: Sequence[str]) -> list[str]:
    """Lines of a table: by arm, gains over the default in points of accuracy and in nats, and thousands of images."""
    every = [json.loads(Path(path).read_text(encoding="utf-8")) for path in paths]
    lines = ["| arm | " + " | ".join(done["pool"] for done in every) + " |", "|---" * (1 + len(every)) + "|"]
    for arm in ARMS:
        if any(arm in fold for done in every for fold in done["folds"].values()):
            lines.append(f"| {arm} | " + " | ".join(_cell(done, arm) for done in every) + " |")
    return lines


def _cell(done: dict[str, Any], arm: str) -> str:
    folds = [fold for fold in done["folds"].values() if arm in fold]
    if not folds:
        return "-"
    right, losses = (np.concatenate([fold[arm][key] for fold in folds]) for key in ("right", "losses"))
    images = f"{np.mean([fold[arm]['images'] for fold in folds]) / 1000:,.0f}k"
    if arm == "default":
        return f"{right.mean():.4f}, {losses.mean():.4f}, {images}"
    default = [np.concatenate([fold["default"][key] for fold in folds]) for key in ("right", "losses")]
    more, less = right - default[0], default[1] - losses
    return f"{100 * more.mean():+.2f} ± {100 * _error(more):.2f}, {less.mean():+.4f} ± {_error(less):.4f}, {images}"


def _error(values: Floats) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values)))


def main(argv: Sequence[str] | None = None) -> None:
    """Search the folds that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", nargs="+", help="files that were written")
    parser.add_argument("--folds", type=int, default=2)
    parser.add_argument("--arms", default=";".join(ARMS))
    parser.add_argument("options", nargs="*", help="option=value in JSON, as keys of a study.toml")
    given = parser.parse_args(argv)
    if given.show:
        print("\n".join(shown(given.show)))
        return
    if not (given.models and given.out):
        parser.error("expected --models and --out, or --show")
    options = {key: json.loads(value) for key, _, value in (each.partition("=") for each in given.options)}
    results = given.out.with_suffix(".json")
    done: dict[str, Any] = {"pool": given.models.absolute().name, "folds": {}}
    if results.exists():
        done = json.loads(results.read_text(encoding="utf-8"))
    arms = given.arms.split(";")
    for fold in range(given.folds):
        if str(fold) not in done["folds"]:
            done["folds"][str(fold)] = searched(given.models, given.out, fold, arms, options)
            write_json(results, done)


if __name__ == "__main__":
    main()
