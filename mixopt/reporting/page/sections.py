"""The sections of a run's page under the table, in the order in which questions come up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mixopt.reporting import plots, tables
from mixopt.reporting.diagnosis import Diagnosis, Midpoints, RowMix
from mixopt.reporting.page.parts import Cell, Code, Figures, Fold, Part, Section, Table, TableRow, Text, Thumbnails
from mixopt.reporting.page.run import PageRun
from mixopt.reporting.page.table import mean_gains
from mixopt.reporting.schema import MadeRow
from mixopt.values.metrics import metric_named

# Cells of mixes drawn beside the chosen one: a page stays small.
MOST_CELLS = 6000


def shifts(run: PageRun) -> Section:
    """In distribution against each shift."""
    report = run.report
    pairs = plots.pairs_of(report)
    if not pairs:
        return Section("In distribution against shift", [], ["no test split was given: --test NAME=FILE draws this"])
    drawn = [plots.shift(report, run.diagnosis, across, along) for across, along in pairs]
    caption = (
        "Dark blue: rows; light blue: checkpoints alone; grey dots: trials; orange: the best row with its 95 % "
        "intervals; line: the front, the points that no other model beats on both; green: sweeps. Hovering names a "
        "point."
    )
    if run.diagnosis and plots.is_part(report, run.diagnosis, *run.diagnosis.samples):
        told = ", ".join(f"{count:,} of {split}" for split, count in run.diagnosis.samples.items())
        caption += f" Hollow: checkpoints by the first samples of the test splits alone ({told}), not on the front."
    missing = [run.reasons[key] for key in ("checkpoints", "trials", "diagnosis") if key in run.reasons]
    if len(report.tests) == 1:
        missing.append("one test split was given, so it stands against selection, which chose")
    return Section("In distribution against shift", [Figures(drawn, caption)], missing)


def mix(run: PageRun) -> Section:
    """The chosen row's mix, and every other row's on demand."""
    report, diagnosis = run.report, run.diagnosis
    title = "The mix"
    if diagnosis is None:
        return Section(title, [], [run.reasons.get("diagnosis", "there is no diagnosis.json")])
    chosen = diagnosis.mix_of(report.best)
    if chosen is None:
        return Section(title, [], [f"{report.best} is no single mix"])
    caption = (
        "Layer groups from first to last, checkpoints across; red adds, blue takes away, white is 0. A checkpoint that "
        "is not here has no part in it."
    )
    parts: list[Part] = [Text(_most(chosen)), Figures([plots.mix(chosen)], caption)]
    others, cells = [], 0
    for shown in diagnosis.mixes:
        size = len(shown.groups) * len(shown.columns)
        if shown.row != report.best and cells + size <= MOST_CELLS:
            others.append(plots.mix(shown))
            cells += size
    if others:
        parts.append(Fold(f"The mixes of {len(others)} other rows", [Figures(others)]))
    left = len(diagnosis.mixes) - 1 - len(others)
    missing = [f"{left} mixes are left out here, and stand in diagnosis.json"] if left else []
    return Section(title, parts, missing)


def _most(shown: RowMix) -> list[str]:
    """Which checkpoints a mix takes most of, and which it takes away, in words; means over its layer groups."""
    count = len(shown.groups)
    means = {name: sum(line[place] for line in shown.coefficients) / count for place, name in enumerate(shown.columns)}
    ranked = sorted(means, key=lambda name: -means[name])
    most = ", ".join(f"{name} {means[name]:+.2f}" for name in ranked[:3] if means[name] > 0)
    least = ", ".join(f"{name} {means[name]:+.2f}" for name in reversed(ranked[-3:]) if means[name] < -0.005)
    return [
        f"On average over its layer groups it takes most of {most}"
        + (f", and moves away from {least}, which hurt beside the others." if least else "; it moves away from none.")
    ]


def why(run: PageRun) -> Section:
    """Who shares a basin with whom, how far checkpoints went, how they were trained, and where greedy stopped."""
    diagnosis, parts = run.diagnosis, list[Part]()
    missing = [run.reasons[key] for key in ("midpoints", "diagnosis") if key in run.reasons]
    if diagnosis is not None:
        parts += [Text([basins(diagnosis.midpoints)])] if diagnosis.midpoints else []
        parts += checkpoints(diagnosis)
    parts += greedy(run)
    drawn = plots.curves(run.report)
    if drawn is not None:
        parts.append(Fold("What the methods saw on the way", [Figures([drawn], "Hollow: tried and not taken.")]))
    return Section("Why", parts, missing)


def checkpoints(diagnosis: Diagnosis) -> Iterator[Part]:
    """Half-way mixes, distance and angle, and hyperparameters, with what they say in words."""
    between = diagnosis.midpoints
    if between is not None:
        drawn = [plots.half_way(between, loss=False)]
        drawn += [plots.half_way(between, loss=True)] if between.loss_gains else []
        caption = (
            f"The mix half-way between two checkpoints less the mean of the two, on {between.samples:,} selection "
            "samples: red is better half-way (they share a basin and err differently), blue worse (a barrier lies "
            "between them)."
        )
        yield Figures(drawn, caption)
    drawn = [each for each in (plots.geometry(diagnosis), plots.training(diagnosis)) if each is not None]
    if drawn:
        known = any(each.hyperparameters for each in diagnosis.checkpoints)
        caption = "A point for each checkpoint, by its score on the selection split."
        if not known:
            caption += (
                " How they were trained is not known: no hparams.jsonl, hparams.yaml, args.yaml or trainer_state.json."
            )
        yield Figures(drawn, caption)


def basins(between: Midpoints) -> str:
    """The checkpoint that hurts most to mix with, in words."""
    table, means = between.loss_gains or between.gains, mean_gains(between)
    if not means:
        return "No half-way mix had a finite loss."
    worst, best = min(means, key=lambda name: means[name]), max(means, key=lambda name: means[name])
    unit = "nats of loss" if between.loss_gains else "of the score"
    pairs = [each for line in table for each in line if each is not None]
    worse = sum(each < 0 for each in pairs) // 2
    return (
        f"Half-way between two checkpoints is worse than the mean of the two in {worse} of {len(pairs) // 2} pairs. "
        f"The checkpoint that mixes worst with the others is {worst} ({means[worst]:+.3f} {unit} half-way, on "
        f"average); best is {best} ({means[best]:+.3f})." + (" All of them share a basin." if not worse else "")
    )


def greedy(run: PageRun) -> Iterator[Part]:
    """Greedy's path: each candidate in turn, the soup's score with it, and what a refused one lost."""
    row = next((row for row in run.report.made if row.name == "greedy" and "greedy" in row.curves), None)
    if row is None:
        return
    header = ["greedy's candidate", "soup with it", "against the soup before", ""]
    sign, lines = metric_named(run.report.metric).sign, []
    best: float | None = None
    for step in row.curves["greedy"]:
        value = float(step["value"])
        change = None if best is None else sign * (value - best)
        told = "" if change is None else f"{change:+.4f}"
        lines.append(
            TableRow(
                [
                    Cell(str(step.get("name", ""))),
                    Cell(f"{value:.4f}", "", value),
                    Cell(told, "", change),
                    Cell("taken" if step.get("added", True) else "refused"),
                ],
                "best" if step.get("added", True) else "",
            )
        )
        best = value if step.get("added", True) else best
    yield Text([_greedy_in_words(row, sign)])
    yield Fold("Greedy's path", [Table(header, lines)])


def _greedy_in_words(row: MadeRow, sign: float) -> str:
    steps = row.curves["greedy"]
    refused = [step for step in steps if not step.get("added", True)]
    taken = len(steps) - len(refused)
    if not refused:
        return f"Greedy took all {taken} checkpoints: none lowered the soup's score."
    alone = " So it kept a single model." if taken == 1 else ""
    return (
        f"Greedy took {taken} of {len(steps)} checkpoints; each of the other {len(refused)} made the soup before it no "
        f"better on the selection split: {_lost(steps, sign)}.{alone}"
    )


def _lost(steps: Sequence[Mapping[str, Any]], sign: float) -> str:
    """What refused candidates cost, the least and the most."""
    best, lost = float(steps[0]["value"]), {}
    for step in steps[1:]:
        if step.get("added", True):
            best = float(step["value"])
        else:
            lost[str(step.get("name", ""))] = sign * (best - float(step["value"]))
    least, most = min(lost, key=lambda name: lost[name]), max(lost, key=lambda name: lost[name])
    return f"{least} would have cost {lost[least]:.4f}, {most} {lost[most]:.4f}"


def search(run: PageRun) -> Section | None:
    """The trials, what mattered, and where time went."""
    report = run.report
    drawn = []
    if run.trials:
        drawn.append(plots.progress(report, run.trials))
    if report.front:
        drawn.append(plots.front(report.front))
    if run.importances:
        title = "What the value varied by (PED-ANOVA)"
        drawn.append(plots.bars("importance", title, "share", run.importances, shares=True))
    spent = {name: seconds for name, seconds in report.time.items() if seconds >= 0.005}
    if spent:
        drawn.append(plots.bars("time", "Where time went", "seconds", spent))
    if not drawn:
        return None
    parts: list[Part] = [Figures(drawn)]
    if lines := list(_told(run)):
        parts.append(Text(lines))
    if report.front:
        header, cells = tables.front(report.front)
        rows = [TableRow([Cell(text) for text in line]) for line in cells]
        parts.append(Fold("Trials on the Pareto front", [Table(header, rows)]))
    missing = [run.reasons[key] for key in ("search", "importances") if key in run.reasons]
    return Section("The search" if report.command == "search" else "The run", parts, missing)


def _told(run: PageRun) -> Iterator[str]:
    report = run.report
    states = ", ".join(f"{count} {state}" for state, count in (report.trials or {}).items())
    if states:
        yield f"Trials: {states}; sampler {report.sampler}, {report.space.dims if report.space else '?'} dimensions."
    race = report.race
    if race and race.given_up:
        spared = 1 - race.images / max(1, race.unraced_images)
        yield (
            f"Racing gave {race.given_up} trials up early: they saw {race.images:,} images in place of "
            f"{race.unraced_images:,} ({spared:.0%} spared)."
        )
    if not report.finished:
        yield "The search was stopped before all of its trials were complete; the same command goes on."
    if report.reused:
        yield f"{report.reused:.0%} of the forward passes were spared, because mixes shared their first layers."


def changes(run: PageRun) -> Section:
    """Per class and sample by sample, against the best single checkpoint."""
    diagnosis, title = run.diagnosis, "What changed"
    if diagnosis is None or not diagnosis.changes:
        return Section(title, [], [run.reasons[key] for key in ("changes", "diagnosis") if key in run.reasons])
    row, reference = diagnosis.row, diagnosis.reference
    drawn = [plots.classes(each, row, reference) for each in diagnosis.changes]
    caption = (
        f"{row} against {reference}: net change in recall, with 95 % intervals; grey is not told apart from none. "
        "Hovering tells how many were gained and lost."
    )
    parts: list[Part] = [Figures(drawn, caption)]
    parts += [Thumbnails(each.flipped, reference, row, each.split) for each in diagnosis.changes if each.flipped]
    return Section(title, parts)


def again(run: PageRun) -> Section:
    """Command, versions, hashes and fingerprints."""
    report, diagnosis = run.report, run.diagnosis
    parts: list[Part] = [Code(run.command)] if run.command else []
    versions = diagnosis.versions if diagnosis else {"mixopt": report.version}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    precision = report.precision.get("mode", "?")
    parts.append(
        Text([f"{told}; seed {report.seed}; forward passes in {precision}; {report.wall_seconds:,.1f} s in all."])
    )
    splits = [
        TableRow([Cell(name), Cell(f"{each.samples:,}", "", each.samples), Cell(each.fingerprint[:16])])
        for name, each in report.splits.items()
    ]
    parts.append(Fold("Data", [Table(["split", "samples", "fingerprint"], splits)]))
    if diagnosis:
        files = [TableRow([Cell(each.name), Cell(each.hash)]) for each in diagnosis.checkpoints]
        parts.append(Fold("Checkpoints", [Table(["checkpoint", "hash"], files)]))
    if run.options:
        parts.append(Fold("Every option (run.toml)", [Code(run.options)]))
    return Section("How to get it again", parts)
