"""Pictures and page of a report: what stands in them, drawn the same every time."""

from __future__ import annotations

import re
from html import escape
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from mixopt.reporting import plots
from mixopt.reporting.diagnosis import (
    Changes,
    CheckpointInfo,
    ClassChange,
    Diagnosis,
    Flipped,
    Midpoints,
    RowMix,
    TrialScores,
)
from mixopt.reporting.page import PageRun, drawings, pool_page
from mixopt.reporting.page import page as make_page
from mixopt.reporting.plots import Drawing
from mixopt.reporting.plots.scores import front_of
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


def diagnosis_of(report: Report, **fields: Any) -> Diagnosis:
    """A diagnosis of three checkpoints that goes with a report of `made`."""
    names = ("a", "b<i>", "c")
    checkpoints = [
        CheckpointInfo(
            name=name,
            hash="0" * 12,
            distance=1.0 + number,
            base_cosine=0.9 + number / 100,
            mean_cosine=0.5,
            scores={"validation": 0.5 + number / 10, "test": 0.4, "sketch": 0.3 + number / 10},
            hyperparameters={"lr": 0.1**number, "optimizer": "adam"},
        )
        for number, name in enumerate(names)
    ]
    table = ((None, 0.01, -0.02), (0.01, None, 0.0), (-0.02, 0.0, None))
    mix = RowMix(row="search", columns=names, groups=("stem", "head"), coefficients=((0.5, 0.7, -0.2), (1, 0, 0)))
    kinds = (ClassChange(name="cat & dog", samples=40, before=20, gained=12, lost=1),)
    flipped = (
        Flipped(number=3, label="cat & dog", before="x", after="cat & dog", text="<script>alert(1)</script>"),
        Flipped(number=5, label="cat & dog", before="cat & dog", after="y", picture="iVBORw0KGgo="),
    )
    values: dict[str, Any] = {
        "version": "1",
        "metric": report.metric,
        "base": "base",
        "checkpoints": checkpoints,
        "midpoints": Midpoints(names=names, samples=40, gains=table, loss_gains=table),
        "mixes": (mix, mix.model_copy(update={"row": "uniform"})),
        "row": "search",
        "reference": "individual",
        "changes": (Changes(split="test", classes=kinds, flipped=flipped),),
        "trials": (TrialScores(trial=0, search=0.5, test={"test": 0.41, "sketch": 0.35}),),
        "samples": {"test": 50, "sketch": 50},
        "versions": {"torch": "2"},
        **fields,
    }
    return Diagnosis(**values)


def texts(drawn: Drawing | None) -> list[str]:
    """What can be read in a picture."""
    assert drawn is not None
    root = ElementTree.fromstring(drawn.svg())
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
    plots.progress(made("nll"), TRIALS[:1] + TRIALS[2:]).svg()
    assert steps[-1][1] == [0.1, 0.05, 0.05], "lower is better"


def test_rows_checkpoints_and_trials_stand_in_the_picture_of_a_shift() -> None:
    report = made()
    assert plots.pairs_of(report) == [("test", "sketch")]
    drawn = plots.shift(report, diagnosis_of(report), "test", "sketch")
    read = texts(drawn)
    for name in NAMES[1:]:
        assert read.count(name) == 1
    assert {"accuracy, test", "accuracy, sketch"} <= set(read)
    assert "base" not in read
    for name in ("a", "b<i>", "c"):
        scores = next(each.scores for each in diagnosis_of(report).checkpoints if each.name == name)
        hovered = f"{name}: {scores['test']:.4f}, {scores['sketch']:.4f}"
        assert f"<title>{escape(hovered)}</title>" in drawn.svg()
    assert "4 rows, 3 checkpoints and 1 trials" in drawn.description


def test_one_test_split_stands_against_selection_and_none_is_told() -> None:
    one = changed(made(), lambda row: row.model_copy(update={"test": {"test": row.test["test"]}}))
    assert plots.pairs_of(one) == [("validation", "test")]
    none = changed(made(), lambda row: row.model_copy(update={"test": {}, "sweep": ()}))
    assert "no test split was given" in make_page([PageRun("run", none)])


def test_checkpoints_that_saw_a_part_are_hollow_and_not_on_the_front() -> None:
    report = made()
    whole, part = diagnosis_of(report), diagnosis_of(report, samples={"test": 20, "sketch": 50})
    assert not plots.is_part(report, whole, "test", "sketch")
    assert plots.is_part(report, part, "test", "sketch")
    assert plots.shift(report, whole, "test", "sketch").svg() != plots.shift(report, part, "test", "sketch").svg()
    assert "Hollow: checkpoints by the first samples" in make_page([PageRun("run", report, part)])


def test_front_is_what_no_other_beats_on_both() -> None:
    points = [(1.0, 1.0), (2.0, 0.5), (0.5, 0.5), (2.0, 0.5)]
    assert front_of(points, 1) == [(1.0, 1.0), (2.0, 0.5)]
    assert front_of(points, -1) == [(0.5, 0.5)]


def test_names_of_equal_rows_do_not_overlap() -> None:
    def alike(row: Any) -> Any:
        metrics = {split: {**each, "accuracy": 0.5} for split, each in row.metrics.items()}
        return row.model_copy(update={"search": 0.5, "test": dict.fromkeys(row.test, 0.5), "metrics": metrics})

    root = ElementTree.fromstring(plots.shift(changed(made(), alike), None, "test", "sketch").svg())
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
    assert plots.curves(changed(made(), lambda row: row.model_copy(update={"curves": seen}))) is None


def test_a_mix_of_a_sweep_that_is_not_finite_is_a_gap() -> None:
    gap = SweepPoint(x=0.0, search=None, test={"test": None, "sketch": 0.0})
    report = changed(made(), lambda row: row.model_copy(update={"sweep": (gap, *row.sweep[1:])} if row.sweep else {}))
    assert "selection" in texts(plots.curves(report))


def test_the_same_run_gives_the_same_page() -> None:
    assert make_page([run_of()]) == make_page([run_of()])


def run_of(name: str = "a & b", **fields: Any) -> PageRun:
    report = made(front=dict(FRONT))
    values = {"importances": {"x": 0.75, "y": 0.25}, "command": "mixopt search --out 'x y'", "options": 'a = "<b>"'}
    return PageRun(name, report, diagnosis_of(report), TRIALS, **{**values, **fields})


def test_page_stands_alone_and_holds_everything() -> None:
    page = make_page([run_of()])
    for part in (
        "<title>a &amp; b</title>",
        "needs a &lt;base&gt;",
        "&lt;synthetic&gt;",
        "10 steered nothing",
        '<tr class="best">',
        "&lt;script&gt;alert(1)&lt;/script&gt;",
        "b&lt;i&gt;",
        "data:image/png;base64,iVBORw0KGgo=",
        "mixopt search --out &#39;x y&#39;",
        "a = &#34;&lt;b&gt;&#34;",
        "accuracy (higher is better) of a search",
        "Use search, a mix of 4 checkpoints: accuracy ",
        "torch 2",
        "moves away from c -0.10, which hurt",
    ):
        assert part in page, part
    assert page.count("<svg") == page.count("</svg>") == len(drawings([run_of()]))
    assert not re.search(r'(?:src|href)="(?!data:image/png;base64,|#)|@import|<\?xml|<link', page)
    assert page.count("<script>") == 1
    links = set(re.findall(r'(?:url\(|href=")#([^")]+)', page))
    assert links <= set(re.findall(r' id="([^"]+)"', page))
    lower = PageRun("run", made("nll", command="compare"))
    assert "nll (lower is better) of a comparison" in make_page([lower])


def test_every_picture_has_a_text_for_those_who_do_not_see_it() -> None:
    page = make_page([run_of()])
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', page)
    assert len(labels) == page.count("<svg")
    assert all(len(label) > 30 for label in labels)


def test_page_says_what_it_lacks() -> None:
    report = made(command="compare")
    page = make_page([PageRun("run", report, missing={"diagnosis": "nobody kept <it>"})])
    assert "best trial so far" not in page
    assert page.count("Not here: nobody kept &lt;it&gt;.") >= 3
    bare = diagnosis_of(
        report, midpoints=None, changes=(), mixes=(), missing={"midpoints": "too dear", "changes": "own"}
    )
    page = make_page([PageRun("run", report, bare)])
    for reason in ("too dear", "own", "search is no single mix"):
        assert f"Not here: {reason}." in page


def test_greedys_path_tells_what_was_refused() -> None:
    steps = [
        {"name": "x", "value": 0.5, "added": True},
        {"name": "y", "value": 0.4, "added": False},
        {"name": "z", "value": 0.45, "added": False},
    ]

    def greedily(row: Any) -> Any:
        return row.model_copy(update={"name": "greedy", "curves": {"greedy": steps}}) if ":" in row.name else row

    page = make_page([PageRun("run", changed(made(), greedily))])
    assert "Greedy took 1 of 3 checkpoints" in page
    assert "z would have cost 0.0500, y 0.1000. So it kept a single model." in page
    assert page.count("refused</td>") == 2


def test_several_runs_stand_side_by_side() -> None:
    page = make_page([run_of("one"), run_of("two")])
    assert "Over 2 runs the best row has on average accuracy" in page
    assert "not comparable" not in page
    assert page.count("The mix of one, search") == 2, "caption and text"
    other = run_of("three")
    mixed = make_page([run_of("one"), PageRun("three", made("nll"), None)])
    assert "different metrics" in mixed
    assert other.name == "three"


def test_pool_page_shows_checkpoints_without_a_run() -> None:
    page = pool_page(diagnosis_of(made()), "<pool>")
    assert "<title>&lt;pool&gt;</title>" in page
    assert "The checkpoint that mixes worst with the others is c (-0.010 nats of loss" in page
    assert page.count("<svg") == 4


def test_letters_that_the_drawing_font_lacks_are_left_to_the_reader(recwarn: pytest.WarningsRecorder) -> None:
    report = changed(made(), lambda row: row.model_copy(update={"name": "検索"}) if row.name == "search" else row)
    assert "検索" in texts(plots.shift(report, None, "test", "sketch"))
    assert not recwarn.list


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.shift(made(), None, "test", "sketch").svg()
    assert dict(matplotlib.rcParams) == before


def test_pictures_are_files_too() -> None:
    drawn = drawings([run_of()])
    assert len({each.file_name for each in drawn}) == len(drawn)
    assert drawn[0].png().startswith(b"\x89PNG")
    assert b"mixopt" in drawn[0].png()[:4096]
    document = plots.pdf_of(drawn[:2])
    assert document.startswith(b"%PDF")
    assert b"/Creator (mixopt)" in document
    assert document.count(b"/Type /Page ") + document.count(b"/Type /Page\n") == 2
    assert document == plots.pdf_of(drawn[:2])
