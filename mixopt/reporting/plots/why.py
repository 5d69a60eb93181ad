"""Checkpoints one by one: distance and angle from the base, and how they were trained, against their scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from scipy import stats

from mixopt.reporting.diagnosis import CheckpointInfo, Diagnosis
from mixopt.reporting.plots.drawing import COLOURS, WIDTH, Drawing, columns, grid, shortened
from mixopt.values.samples import VALIDATION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Points = Mapping[str, tuple[float, float]]
# Hyperparameters that are shown: numbers that differ, those first that go with the score most.
SHOWN = 6
ACROSS = 2  # panels beside each other
FEWEST = 4  # checkpoints that a rank correlation is told of
# Numbers in a trainer's file that are no choice.
NO_CHOICE = ("seed", "seconds", "minutes", "time")


def geometry(diagnosis: Diagnosis) -> Drawing | None:
    """Distance and cosine to the base against the score; None where no checkpoint was scored."""
    scored = _scored(diagnosis)
    if not scored:
        return None
    centre = diagnosis.base or "the mean of all"
    panels = {f"distance from {shortened(centre, 18)}": {each.name: each.distance for each in scored}}
    if all(each.base_cosine is not None for each in scored):
        panels["cosine to the base"] = {each.name: each.base_cosine or 0.0 for each in scored}
    panels["mean cosine to the others"] = {each.name: each.mean_cosine for each in scored}
    return _against_score("geometry", "Distance and angle against score", diagnosis.metric, scored, panels)


def training(diagnosis: Diagnosis) -> Drawing | None:
    """Hyperparameters against the score, those that go with it most; None where none is known that differs."""
    scored = _scored(diagnosis)
    names = {key for each in scored for key, value in each.hyperparameters.items() if isinstance(value, float)}
    panels: dict[str, dict[str, float]] = {}
    for name in sorted(names - set(NO_CHOICE)):
        known = {each.name: each.hyperparameters.get(name) for each in scored}
        values = {key: value for key, value in known.items() if isinstance(value, float)}
        if len(set(values.values())) > 1:
            panels[name] = values
    if not panels:
        return None
    score = {each.name: each.scores[VALIDATION] for each in scored}
    ranked = sorted(panels, key=lambda name: -abs(correlation(panels[name], score) or 0.0))[:SHOWN]
    shown = {name: panels[name] for name in ranked}
    return _against_score("training", "How they were trained, against score", diagnosis.metric, scored, shown)


def correlation(values: Mapping[str, float], scores: Mapping[str, float]) -> float | None:
    """Spearman's rank correlation over the checkpoints that both know; None of fewer than four, or of equal ones."""
    names = [name for name in values if name in scores]
    first, second = [values[name] for name in names], [scores[name] for name in names]
    if len(names) < FEWEST or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    return float(stats.spearmanr(first, second).statistic)


def _scored(diagnosis: Diagnosis) -> list[CheckpointInfo]:
    return [each for each in diagnosis.checkpoints if VALIDATION in each.scores]


def _against_score(
    name: str, title: str, metric: str, scored: Sequence[CheckpointInfo], panels: Mapping[str, Mapping[str, float]]
) -> Drawing:
    score = {each.name: each.scores[VALIDATION] for each in scored}
    told = {label: correlation(values, score) for label, values in panels.items()}
    across = min(ACROSS, len(panels))

    def draw(figure: Figure) -> dict[str, str]:
        hovered = {}
        places = grid(figure, len(panels), across)
        for number, (axes, (label, values)) in enumerate(zip(places, panels.items(), strict=True)):
            known = told[label]
            axes.set_title("" if known is None else f"rank correlation {known:+.2f}", fontsize=8)
            axes.set_xlabel(shortened(label, 34), fontsize=8)
            if number % across == 0:
                axes.set_ylabel(f"{metric}, selection", fontsize=8)
            axes.tick_params(labelsize=7)
            if _spans_decades(values.values()):
                axes.set_xscale("log")
            else:
                axes.ticklabel_format(axis="x", style="sci", scilimits=(-2, 5))
                axes.locator_params(axis="x", nbins=3)
            for place, (checkpoint, value) in enumerate(values.items()):
                point = (value, score[checkpoint])
                axes.plot(*columns([point]), "o", color=COLOURS[0], markersize=4, gid=f"p{number}-{place}")
                hovered[f"p{number}-{place}"] = f"{checkpoint}: {value:.4g}, {score[checkpoint]:.4f}"
        return hovered

    text = "Rank correlation with the score: " + ", ".join(
        f"{label} {'unknown' if value is None else f'{value:+.2f}'}" for label, value in told.items()
    )
    return Drawing(name, title, f"{text}.", WIDTH, 1.9 * -(-len(panels) // across) + 0.2, draw)


def _spans_decades(values: Iterable[float]) -> bool:
    """Whether numbers are all positive and one is a hundred times another."""
    known = list(values)
    return min(known) > 0 and max(known) / min(known) >= 100
