"""Gains and losses class by class against the best single checkpoint."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mixopt.reporting.diagnosis import Changes, ClassChange
from mixopt.reporting.plots.drawing import COLOURS, INK, WIDTH, Drawing, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 40  # classes, those that change most
_NORMAL = 1.959964  # of a 95 % interval


def change_of(found: ClassChange) -> tuple[float, float]:
    """How much more of a class is right, and half the width of its 95 % interval (paired, normal); shares.

    Half a sample is added to each of the four cells (Agresti and Min, "Simple improved confidence intervals for
    comparing matched proportions", 2005), so that a class without changes has an interval too.
    """
    gained, lost, count = found.gained + 0.5, found.lost + 0.5, found.samples + 2
    change = (gained - lost) / count
    return (found.gained - found.lost) / max(1, found.samples), _NORMAL * math.sqrt(
        max(0.0, gained + lost - count * change**2)
    ) / count


def classes(found: Changes, row: str, reference: str) -> Drawing:
    """Net change of each class, with intervals; of many classes those that change most."""
    ranked = sorted(found.classes, key=lambda each: -abs(change_of(each)[0]))[:SHOWN]
    ranked.sort(key=lambda each: -change_of(each)[0])
    values = [change_of(each) for each in ranked]

    def draw(figure: Figure) -> dict[str, str]:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        hovered = {}
        for place, (each, (change, half)) in enumerate(zip(ranked, values, strict=True)):
            clear = abs(change) > half
            colour = COLOURS[7] if not clear else COLOURS[2] if change > 0 else COLOURS[1]
            axes.errorbar([100 * change], [place], xerr=[100 * half], fmt="none", color=colour, linewidth=1)
            axes.plot([100 * change], [place], "o", color=colour, markersize=4, gid=f"k{place}")
            hovered[f"k{place}"] = (
                f"{each.name}: {each.gained} gained, {each.lost} lost of {each.samples} ({each.before} right before)"
            )
        axes.set_yticks(range(len(ranked)), [shortened(each.name) for each in ranked], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel(f"points of recall, {shortened(row)} less {shortened(reference)}, {found.split}")
        return hovered

    told = [f"{each.name} {100 * change:+.1f}" for each, (change, _) in zip(ranked, values, strict=True)]
    ends = told if len(told) <= 6 else [*told[:3], "…", *told[-3:]]
    return Drawing(
        f"classes-{found.split}",
        f"Per class on {found.split}",
        f"{', '.join(ends)} points.",
        WIDTH,
        0.9 + 0.17 * len(ranked),
        draw,
    )
