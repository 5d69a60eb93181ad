"""Pictures and page of a report: what stands in them, drawn the same every time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mixopt.reporting import plots
from mixopt.reporting.page import page as make_page
from mixopt.reporting.rows import Failure, LabelledOutcomes, Row, TrialPoint
from mixopt.reporting.schema import Front, Report, SweepPoint
from mixopt.reporting.tables import front
from tests.reports import report_of

NAMES = ("base", "individual", "uniform", "greedy:$a_b$", "search")
TRIALS = [
    TrialPoint(0, 0.10, 100, False),
    TrialPoint(1, 0.90, 10, True),
    TrialPoint(2, 0.05, 100, False),
    TrialPoint(3, 0.20, 100, False),
]
FRONT: dict[str, Any] = {
    "objectives": [{"name": "validation", "weight": 0.5}, {"name": "<synthetic>", "weight": 0.5}],
    "signal": "accuracy with nll",
    "direction": "maximize",
    "points": [
        {"trial": 0, "values": [0.1, 0.1], "on_front": False},
        {"trial": 3, "values": [0.3, 0.2], "on_front": True},
        {"trial": 5, "values": [0.2, 0.4], "on_front": True},
    ],
    "picked": 5,
}


def made(metric: str = "accuracy", **fields: Any) -> Report:
    """A report of some rows on two test splits, with curves, a sweep and a row that failed."""
    random = np.random.default_rng(0)
    rows: list[Row | Failure] = [Failure("model_stock", "needs a <base>")]
    for number, name in enumerate(NAMES):
        samples = {}
        for split in ("validation", "test", "sketch"):
            labels = random.integers(0, 3, 50)
            samples[split] = LabelledOutcomes(labels, np.where(random.random(50) < 0.3, 3, labels), random.random(50))
        metrics = {
            split: {"accuracy": float(each.correct.mean()), "nll": float(each.losses.mean())}
            for split, each in samples.items()
        }
        more: dict[str, Any] = {}
        if name == "individual":
            more["curves"] = {"individuals": [{"name": "a", "value": 0.5}, {"name": "b", "value": 0.4}]}
        if name == "uniform":
            more["curves"] = {"alpha": [{"x": 0.0, "value": 0.5}, {"x": 0.5, "value": 0.6}]}
            more["sweep"] = [SweepPoint(x=x, search=0.5, test={"test": 0.4, "sketch": x}) for x in (0.0, 0.5)]
        rows.append(Row(name, metrics, samples, 4, 4, 100 * number, 0, 0.5, number, **more))
    if "front" in fields:
        fields["front"] = Front(**fields["front"])
    return report_of(rows, metric, **{"best": "search", "tuning": 40, **fields})


def changed(report: Report, change: Any) -> Report:
    """The report with every made row changed."""
    rows = tuple(row if row in report.failures else change(row) for row in report.methods)
    return report.model_copy(update={"methods": rows})


def texts(drawn: str) -> list[str]:
    """What can be read in a picture."""
    root = ElementTree.fromstring(drawn)
    return ["".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text")]


def test_signals_are_of_the_samples_that_steer() -> None:
    random = np.random.default_rng(1)
    labels = np.zeros(50, dtype=np.int64)
    samples = LabelledOutcomes(labels, np.where(random.random(50) < 0.5, 1, 0), random.random(50))
    one = Row(
        "one", {"validation": {"accuracy": float(samples.correct.mean())}}, {"validation": samples}, 1, 1, 1, 0, 1.0, 1
    )
    (found,) = (row.signals for row in report_of([one], tuning=40).made)
    right, loss = samples.correct[:40].mean(), samples.losses[:40].mean()
    assert found == {"accuracy": pytest.approx(right), "accuracy with nll": pytest.approx(right - loss)}
    assert report_of([one]).made[0].signals["accuracy"] == samples.correct.mean()


def test_progress_shows_the_best_fully_scored_trial_and_the_rows_before(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    steps: list[tuple[list[float], list[float]]] = []
    step = Axes.step

    def seen(self: Axes, x: list[float], y: list[float], *more: Any, **options: Any) -> Any:
        steps.append((x, y))
        return step(self, x, y, *more, **options)

    monkeypatch.setattr(Axes, "step", seen)
    read = texts(plots.progress(made(), TRIALS))
    assert steps == [([100, 110, 210, 310], [0.1, 0.1, 0.1, 0.2])]
    assert {"individual", "uniform", "greedy:$a_b$", "the start", "best trial so far"} <= set(read)
    assert not {"base", "search", "model_stock"} & set(read)
    assert "individual" not in texts(plots.progress(made(select={"validation": 0.5}), TRIALS)), "another scale"
    plots.progress(made("nll"), TRIALS[:1] + TRIALS[2:])
    assert steps[-1][1] == [0.1, 0.05, 0.05], "lower is better"


def test_every_mix_is_named_once_for_each_test_split() -> None:
    read = texts(plots.tests(made()))
    for name in NAMES[1:]:
        assert read.count(name) == 2
    assert {"accuracy, test", "accuracy, sketch"} <= set(read)
    assert "base" not in read


def test_names_of_equal_rows_do_not_overlap() -> None:
    report = changed(made(), lambda row: row.model_copy(update={"search": 0.5, "test": {"test": 0.5}}))
    root = ElementTree.fromstring(plots.tests(report))
    found = root.iter("{http://www.w3.org/2000/svg}text")
    places = [float(each.attrib["y"]) for each in found if "".join(each.itertext()) in NAMES]
    assert len(places) == 4
    assert np.diff(sorted(places)).min() > 9, "points, at a size of 8"


def test_front_is_drawn_and_listed() -> None:
    report = made(front=dict(FRONT))
    assert report.front
    read = texts(plots.front(report.front))
    assert {"picked", "on the front", "accuracy with nll, validation", "accuracy with nll, <synthetic>"} <= set(read)
    header, cells = front(report.front)
    assert header == ["trial", "validation (weight 0.5)", "<synthetic> (weight 0.5)", ""]
    assert cells == [["3", "0.3000", "0.2000", ""], ["5", "0.2000", "0.4000", "picked"]]


def test_a_start_that_stays_is_listed_off_the_front_too() -> None:
    _, cells = front(Front(**{**FRONT, "picked": 0}))
    assert [row[0] for row in cells] == ["0", "3", "5"]
    assert [row[-1] for row in cells] == ["picked, not on the front: no trial was confirmed", "", ""]


def test_curves_and_sweeps_have_a_panel_each() -> None:
    read = texts(plots.curves(made()))
    assert {"individual: individuals", "uniform: alpha", "step", "alpha", "selection", "sketch"} <= set(read)
    seen = {"nothing seen": [], "one": [{"value": 0.5}]}
    assert plots.curves(changed(made(), lambda row: row.model_copy(update={"curves": seen}))) == ""


def test_a_mix_of_a_sweep_that_is_not_finite_is_a_gap() -> None:
    gap = SweepPoint(x=0.0, search=None, test={"test": None, "sketch": 0.0})
    report = changed(made(), lambda row: row.model_copy(update={"sweep": (gap, *row.sweep[1:])} if row.sweep else {}))
    assert "selection" in texts(plots.curves(report))


@pytest.mark.parametrize("draw", [plots.tests, plots.curves])
def test_the_same_report_gives_the_same_picture(draw: Any) -> None:
    assert draw(made()) == draw(made())


def test_page_stands_alone_and_holds_everything() -> None:
    page = make_page(made(front=dict(FRONT)), "a & b", TRIALS)
    for part in (
        "<title>a &amp; b</title>",
        "needs a &lt;base&gt;",
        "&lt;synthetic&gt;",
        "10 steered nothing",
        "<tr class=best>",
    ):
        assert part in page
    assert page.count("<svg") == page.count("</svg>") == 4
    assert not re.search(r'(?:src|href)="http|<script|@import|<\?xml', page)
    links = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert links <= set(re.findall(r' id="([^"]+)"', page))
    assert "p&lt;" in page or "p=" in page
    assert "accuracy (higher is better) of a search" in page
    assert "nll (lower is better) of a comparison" in make_page(made("nll", command="compare"), "run", [])


def test_page_without_trials_leaves_the_picture_of_the_search_out() -> None:
    page = make_page(made(command="compare"), "run", [])
    assert "best trial so far" not in page
    assert page.count("<svg") == 2


def test_letters_that_the_drawing_font_lacks_are_left_to_the_reader(recwarn: pytest.WarningsRecorder) -> None:
    report = changed(made(), lambda row: row.model_copy(update={"name": "検索"}) if row.name == "search" else row)
    assert "検索" in plots.tests(report)
    assert not recwarn.list


def test_drawing_leaves_matplotlibs_settings_alone(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.tests(made())
    assert dict(matplotlib.rcParams) == before
