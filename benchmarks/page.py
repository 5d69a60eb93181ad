"""The page of a large run: its size, what drawing it takes, and how soon a browser has it.

    OMP_NUM_THREADS=1 python benchmarks/page.py [--checkpoints 72] [--trials 2000] [--groups 26] [--rows 14]

A made-up run: random scores, mixes and outcomes of that many checkpoints, trials, layer groups and rows. The time to
open is that of a headless chromium, where there is one, from the start of navigation to the end of loading. A peer's
page of the same trials stands beside it: Optuna's own history plot by plotly, its script inlined, as
`optuna.visualization` gives it; where plotly is not installed that row is left out.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixopt.diagnosis.changes import picture
from mixopt.reporting.build import entries
from mixopt.reporting.diagnosis import Changes, CheckpointInfo, ClassChange, Diagnosis, Flipped, Midpoints, RowMix
from mixopt.reporting.page import PageRun, page
from mixopt.reporting.rows import LabelledOutcomes, Row, TrialPoint
from mixopt.reporting.schema import Report, SplitInfo, Verification

SAMPLES, CLASSES = 2000, 100
SPLITS = ("validation", "test", "sketch", "rendition", "adversarial", "v2")


def made_report(rows: int, checkpoints: int, random: np.random.Generator) -> Report:
    """A search's report of random outcomes."""
    made = []
    names = ["base", "individual", "uniform", "greedy", *(f"row_{number}" for number in range(rows - 5)), "search"]
    for number, name in enumerate(names):
        samples = {}
        for split in SPLITS:
            labels = random.integers(0, CLASSES, SAMPLES)
            right = random.random(SAMPLES) < 0.6 + number / 100
            samples[split] = LabelledOutcomes(labels, np.where(right, labels, 0), random.random(SAMPLES))
        metrics = {
            split: {"accuracy": float(each.correct.mean()), "nll": float(each.losses.mean())}
            for split, each in samples.items()
        }
        steps = [
            {"name": f"model_{step}", "value": float(random.random()), "added": step < 5} for step in range(checkpoints)
        ]
        curves = {"greedy": steps} if name == "greedy" else {}
        made.append(Row(name, metrics, samples, 100, 100, 500_000, 0, 60.0, checkpoints, curves=curves))
    return Report(
        version="1",
        command="search",
        metric="accuracy",
        best="search",
        methods=entries(made, "accuracy", 1600, best="search"),
        verification=Verification(
            trial_score=0.7, file_score=0.7, difference=0.0, predictions_differing=0, samples=SAMPLES
        ),
        splits={split: SplitInfo(samples=SAMPLES, fingerprint="f" * 64) for split in SPLITS},
        tuning=1600,
        signal="accuracy with nll",
        batchnorm={"mode": "average"},
        precision={"mode": "fp32"},
        stack={"mode": "fp32", "place": "device"},
        seed=0,
        wall_seconds=1.0,
        time={"forward": 10.0, "other": 1.0},
        reused=0.0,
        sampler="cmaes",
        trials={"complete": 2000},
    )


def made_diagnosis(checkpoints: int, groups: int, report: Report, random: np.random.Generator) -> Diagnosis:
    """A diagnosis with a full mix of every row."""
    names = tuple(f"model_{number:02}" for number in range(checkpoints))
    between = min(checkpoints, 35)
    table = tuple(
        tuple(None if x == y else float(random.normal(0, 0.01)) for x in range(between)) for y in range(between)
    )
    noise = random.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)
    flipped = [
        Flipped(number=n, label="a", before="b", after="a", picture=picture(each)) for n, each in enumerate(noise)
    ]
    return Diagnosis(
        version="1",
        metric="accuracy",
        base="base",
        checkpoints=tuple(
            CheckpointInfo(
                name=name,
                hash="0" * 12,
                distance=float(random.random()),
                base_cosine=float(random.random()),
                mean_cosine=0.5,
                scores={split: float(random.random()) for split in SPLITS},
                hyperparameters={key: float(random.random()) for key in ("lr", "wd", "mixup", "epochs", "ls", "drop")},
            )
            for name in names
        ),
        midpoints=Midpoints(names=names[:between], samples=100, gains=table, loss_gains=table),
        mixes=tuple(
            RowMix(
                row=row.name,
                columns=names,
                groups=tuple(f"visual.transformer.resblocks.{number}" for number in range(groups)),
                coefficients=tuple(
                    tuple(line) for line in random.normal(0, 0.1, (groups, checkpoints)).round(4).tolist()
                ),
            )
            for row in report.made
        ),
        row="search",
        reference="individual",
        changes=tuple(
            Changes(
                split=split,
                classes=tuple(
                    ClassChange(name=f"class {n}", samples=20, before=9, gained=3, lost=2) for n in range(100)
                ),
                flipped=tuple(flipped if split == "test" else ()),
            )
            for split in SPLITS[1:]
        ),
        samples=dict.fromkeys(SPLITS[1:], SAMPLES),
    )


def opened(path: Path) -> float | None:
    """Seconds until a browser has loaded a page; None without one."""
    browser_file, driver = shutil.which("chromium"), shutil.which("chromedriver")
    try:
        from selenium import webdriver
    except ImportError:
        return None
    if browser_file is None or driver is None:
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = browser_file
    for each in ("--headless=new", "--no-sandbox", "--disable-gpu"):
        options.add_argument(each)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(path.as_uri())
        script = "const [t] = performance.getEntriesByType('navigation'); return t.loadEventEnd - t.startTime"
        return round(float(browser.execute_script(script)) / 1000, 2)
    finally:
        browser.quit()


def peer(trials: Sequence[TrialPoint]) -> str | None:
    """Optuna's history plot of the same trials as a page of its own."""
    try:
        import optuna
        from optuna.visualization import plot_optimization_history
    except ImportError:
        return None
    if not optuna.visualization.is_available():
        return None
    study = optuna.create_study(direction="maximize")
    study.add_trials([optuna.trial.create_trial(value=each.value) for each in trials])
    figure: Any = plot_optimization_history(study)
    return str(figure.to_html(include_plotlyjs=True))


def main() -> None:
    """Draw both, and open them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=72)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--groups", type=int, default=26)
    parser.add_argument("--rows", type=int, default=14)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    report = made_report(given.rows, given.checkpoints, random)
    values = random.normal(0.5, 0.05, given.trials)
    trials = [TrialPoint(number, float(value), 5000, False) for number, value in enumerate(values)]
    diagnosis = made_diagnosis(given.checkpoints, given.groups, report, random)
    run = PageRun(
        "large", report, diagnosis, trials, {f"x{n}": 1 / 26 for n in range(26)}, "mixopt search", "a = 1\n" * 50
    )
    found = []
    pages: dict[str, Callable[[], str | None]] = {
        "mixopt": lambda: page([run]),
        "Optuna's history, plotly": lambda: peer(trials),
    }
    for name, draw in pages.items():
        started = time.perf_counter()
        text = draw()
        took = time.perf_counter() - started
        if text is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "page.html"
            path.write_text(text, encoding="utf-8")
            seconds = opened(path)
        found.append(
            {"page": name, "MB": round(len(text.encode()) / 1e6, 2), "drawn_s": round(took, 2), "opened_s": seconds}
        )
    print("| page | MB | drawn in s | open in s |\n|---|---|---|---|")
    for each in found:
        print(f"| {each['page']} | {each['MB']} | {each['drawn_s']} | {each['opened_s']} |")
    print(json.dumps({"checkpoints": given.checkpoints, "trials": given.trials, "pages": found}))


if __name__ == "__main__":
    main()
