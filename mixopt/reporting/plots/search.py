"""The search: the best so far against what it took, what mattered, where time went, and the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING

from mixopt.reporting.plots.drawing import (
    COLOURS,
    INK,
    MARKS,
    PALE,
    WIDTH,
    Drawing,
    columns,
    mixes,
    shortened,
)
from mixopt.reporting.rows import TrialPoint, best_so_far
from mixopt.reporting.schema import Front, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS = 15  # so many, the largest


def progress(report: Report, trials: Sequence[TrialPoint]) -> Drawing:
    """The best trial so far against the images that trials were scored on; other rows are lines, marked at their cost.

    Args:
        report: The content of report.json.
        trials: Of `mixopt.study.read_trials`, the start first.
    """
    images, best = best_so_far(report.metric, trials)
    signal = report.signal
    # With more splits that steer, the sampler is told a mean over them, which is not known of the other rows.
    before = [row for row in mixes(report) if row.name != "search" and not report.select]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axhline(best[0], color=INK, linestyle="--", linewidth=1, label="the start")
        axes.step(images, best, where="post", color=COLOURS[0], linewidth=2, label="best trial so far")
        looks = zip(cycle(COLOURS[1:6]), cycle(MARKS), strict=False)
        for row, (colour, mark) in zip(before, looks, strict=False):
            place = ([row.images], [row.signals[signal]])
            axes.axhline(place[1][0], color=colour, linewidth=0.7, alpha=0.6)
            axes.plot(*place, mark, color=colour, markersize=6, clip_on=False, label=shortened(row.name))
        axes.set_xlabel("images scored")
        axes.set_ylabel(f"{signal}, samples that steer")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlim(left=0)
        figure.legend(loc="outside lower center", ncols=2)

    text = f"{signal} goes from {best[0]:.4f} to {best[-1]:.4f} in {len(trials)} trials and {images[-1]:,} images."
    return Drawing("search", "The best trial so far", text, WIDTH, 3.8 + 0.1 * len(before), draw)


def runs_together(every: Mapping[str, tuple[Report, Sequence[TrialPoint]]]) -> Drawing:
    """The best trial so far of several runs, by name."""
    lines = {name: best_so_far(report.metric, trials) for name, (report, trials) in every.items()}
    signals = list(dict.fromkeys(report.signal for report, _ in every.values()))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, (images, best)), colour in zip(lines.items(), cycle(COLOURS[:6]), strict=False):
            axes.step(images, best, where="post", color=colour, linewidth=1.5, label=shortened(name))
        axes.set_xlabel("images scored")
        axes.set_ylabel(", ".join(signals))
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.locator_params(axis="x", nbins=5)
        figure.legend(loc="outside lower center", ncols=2)

    text = "; ".join(f"{name} ends at {best[-1]:.4f}" for name, (_, best) in lines.items())
    return Drawing("searches", "The best trial so far, by run", f"{text}.", WIDTH, 3.6 + 0.1 * len(lines), draw)


def bars(name: str, title: str, unit: str, values: Mapping[str, float], shares: bool = False) -> Drawing:
    """Amounts as bars, the largest first.

    Args:
        name: Of the file.
        title: What they are.
        unit: Beside the axis.
        values: By what they are of.
        shares: Whether they are shares of 1, told as percents.
    """
    ranked = dict(sorted(values.items(), key=lambda item: -item[1])[:BARS])

    def told(value: float) -> str:
        return f"{value:.0%}" if shares else f"{value:,.3g}"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(ranked))
        axes.barh(places, list(ranked.values()), color=COLOURS[0], height=0.65)
        axes.set_yticks(places, [shortened(each) for each in ranked])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(unit)
        axes.margins(x=0.15)
        for place, value in zip(places, ranked.values(), strict=True):
            axes.annotate(told(value), (value, place), (3, 0), textcoords="offset points", va="center", fontsize=8)

    text = ", ".join(f"{key} {told(value)}" for key, value in ranked.items())
    return Drawing(name, title, f"{text}.", WIDTH, 0.7 + 0.22 * len(ranked), draw)


def front(found: Front) -> Drawing:
    """The first two objectives of every trial, with the Pareto front and the trial that was picked."""
    points = [(point, point.values[:2]) for point in found.points]
    on_front = sorted(values for point, values in points if point.on_front)
    picked = [values for point, values in points if point.trial == found.picked]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(*columns([values for point, values in points if not point.on_front]), "o", color=PALE, label="trial")
        axes.plot(*columns(on_front), "s-", color=COLOURS[0], linewidth=1, label="on the front")
        axes.plot(*columns(picked), "*", color=COLOURS[1], markersize=15, label="picked")
        axes.set_xlabel(f"{found.signal}, {found.objectives[0].name}")
        axes.set_ylabel(f"{found.signal}, {found.objectives[1].name}")
        figure.legend(loc="outside lower center", ncols=3)

    text = f"{len(on_front)} of {len(points)} trials are on the front; trial {found.picked} was picked."
    return Drawing("front", "The Pareto front", text, WIDTH, 3.8, draw)
