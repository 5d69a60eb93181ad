"""A small log-log line chart as SVG, with the standard library alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#333333",
    "#999999",
)  # Okabe and Ito's, and a grey
PANEL = (230, 190)
MARGIN = (62, 30, 14, 42)  # left, top, right, bottom
LEGEND = 34


@dataclass(frozen=True)
class Panel:
    """One plot of the chart.

    Attributes:
        title: Above it.
        x_label: Below it.
        y_label: Beside it.
        x: The places, above 0.
        lines: Name to one value per place; values of 0 or less are left out.
    """

    title: str
    x_label: str
    y_label: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]


def draw(rows: Sequence[Sequence[Panel]], note: str) -> str:
    """The SVG of rows of panels; the panels of a row share their y axis, a name has one colour throughout.

    Args:
        rows: From top to bottom.
        note: A line at the foot.
    """
    names = list(dict.fromkeys(name for row in rows for panel in row for name in panel.lines))
    colour = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    wide = PANEL[0] + MARGIN[0] + MARGIN[2]
    high = PANEL[1] + MARGIN[1] + MARGIN[3]
    width, height = wide * max(map(len, rows)), LEGEND + high * len(rows) + 24
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for number, name in enumerate(names):
        x = MARGIN[0] + 120 * number
        parts.append(f'<path d="M{x} 18h22" stroke="{colour[name]}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x + 11}" cy="18" r="3" fill="{colour[name]}"/>')
        parts.append(_text(x + 28, 22, name))
    for down, row in enumerate(rows):
        values = [value for panel in row for line in panel.lines.values() for value in line if value > 0]
        span = _decades(values)
        for across, panel in enumerate(row):
            parts.append(f'<g transform="translate({across * wide + MARGIN[0]},{LEGEND + down * high + MARGIN[1]})">')
            parts += _panel(panel, span, colour)
            parts.append("</g>")
    parts += [_text(MARGIN[0], height - 10, note, fill="#555"), "</svg>"]
    return "\n".join(parts) + "\n"


def _panel(panel: Panel, span: tuple[float, float], colour: Mapping[str, str]) -> list[str]:
    wide, high = PANEL
    low, top = math.log10(min(panel.x)), math.log10(max(panel.x))

    def right(value: float) -> float:
        return wide * (0.04 + 0.92 * (math.log10(value) - low) / max(top - low, 1e-9))

    def up(value: float) -> float:
        return high * (1 - (math.log10(value) - span[0]) / (span[1] - span[0]))

    parts = [f'<rect width="{wide}" height="{high}" fill="none" stroke="#999"/>']
    for decade in range(math.ceil(span[0]), math.floor(span[1]) + 1):
        y = up(10.0**decade)
        parts.append(f'<path d="M0 {y:.1f}h{wide}" stroke="#e4e4e4"/>')
        parts.append(_text(-6, y + 4, f"{10.0**decade:g}", anchor="end"))
    for value in panel.x:
        parts.append(f'<path d="M{right(value):.1f} {high}v4" stroke="#999"/>')
        parts.append(_text(right(value), high + 16, _short(value), anchor="middle"))
    for name, line in panel.lines.items():
        points = [(right(x), up(y)) for x, y in zip(panel.x, line, strict=True) if y > 0]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour[name]}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour[name]}"/>' for x, y in points]
    parts.append(_text(wide / 2, -10, panel.title, anchor="middle", weight="bold"))
    parts.append(_text(wide / 2, high + 32, panel.x_label, anchor="middle"))
    if panel.y_label:
        parts.append(f'<g transform="translate(-48,{high / 2}) rotate(-90)">')
        parts += [_text(0, 0, panel.y_label, anchor="middle"), "</g>"]
    return parts


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Whole decades around the values, at least one."""
    low, top = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return float(low), float(max(top, low + 1))


def _short(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", fill: str = "#222") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-weight="{weight}" fill="{fill}">{escape(text)}</text>'
