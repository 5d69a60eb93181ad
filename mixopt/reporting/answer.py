"""The answer of a run in one sentence: which model, how much better than what people would take, and how sure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mixopt.reporting.build import REFERENCES
from mixopt.reporting.rows import split_shown
from mixopt.reporting.schema import MadeRow, Report
from mixopt.values.metrics import find_metric, metric_named
from mixopt.values.samples import VALIDATION

# So many splits are told in the sentence; the others stand in the table.
TOLD = 3


@dataclass(frozen=True)
class Difference:
    """How much better the best row is than another on a split.

    Attributes:
        row: The other row's name.
        split: The split.
        gain: In the driving metric; positive where the best row is better.
        low: The lower end of the 95 % interval, paired over samples; None where no samples tell.
        high: The upper end.
    """

    row: str
    split: str
    gain: float
    low: float | None
    high: float | None

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def answer(report: Report) -> str:
    """Which row to use, with its scores and its gains over the best single checkpoint and over greedy on each split.

    The splits are the test splits; without any, the selection split, which chose, and so tells too much.
    """
    best = report.row(report.best)
    splits = [split for split in report.tests if report.metric_of(split) == report.metric] or [VALIDATION]
    every = differences(report, splits)
    parts = [
        _of_split(report, split, [each for each in every if each.split == split], is_first=split == splits[0])
        for split in splits[:TOLD]
    ]
    more = f"; {len(splits) - TOLD} more splits are in the report" if len(splits) > TOLD else ""
    chosen = " (on the selection split, which chose it: no test split was given)" if splits == [VALIDATION] else ""
    return f"Use {_what(report, best)}: {'; '.join(parts)}{more}{chosen}.{_doubt(every)}"


def differences(report: Report, splits: Sequence[str]) -> list[Difference]:
    """The best row against each reference that was made, split by split."""
    return [each for split in splits for each in _differences(report, split)]


def _differences(report: Report, split: str) -> Iterator[Difference]:
    best, sign = report.row(report.best), metric_named(report.metric).sign
    for other in report.made:
        if other.name not in REFERENCES or other.name == best.name or split not in best.metrics:
            continue
        known = best.gains.get(other.name, {}).get(split)
        if known is None:
            measured = report.metric_of(split)
            gain = sign * (best.metrics[split][measured] - other.metrics[split][measured])
            yield Difference(other.name, split, gain, None, None)
        else:
            yield Difference(other.name, split, *known)


def called(report: Report, name: str) -> str:
    """A row as a reader knows it: the best single checkpoint by its own name."""
    best = report.row(name).notes.get("best")
    return f"{best}, the best single checkpoint" if name == "individual" and best else name


def amount(report: Report, value: float) -> str:
    """A difference in the driving metric with its sign: in points where it is a share, else as a number."""
    return f"{100 * value:+.1f}" if _in_points(report) else f"{value:+.3g}"


def _in_points(report: Report) -> bool:
    """Whether the metric is a share, so that a hundredth of it is a point."""
    found = find_metric(report.metric)
    return found is not None and found.bounds == (0.0, 1.0)


def _what(report: Report, best: MadeRow) -> str:
    if best.name == "individual":
        return f"{called(report, best.name)} (row individual)"
    if best.models > 1:
        return f"{best.name}, which runs {best.models} models"
    if best.ingredients > 1:
        return f"{best.name}, a mix of {best.ingredients} checkpoints"
    return best.name


def _of_split(report: Report, split: str, found: Sequence[Difference], is_first: bool) -> str:
    """What is said of a split; of the first, with names in full."""
    score = f"{report.metric} {report.row(report.best).metrics[split][report.metric]:.4f} on {split_shown(split)}"
    against = [_against(report, each, is_first) for each in found]
    return f"{score}, {' and '.join(against)}" if against else score


def _against(report: Report, found: Difference, in_full: bool) -> str:
    unit = " points" if in_full and _in_points(report) else ""
    name = called(report, found.row)
    text = f"{amount(report, found.gain)}{unit} against {name if in_full else name.split(', ')[0]}"
    if found.low is None or found.high is None:
        return f"{text} (no interval)"
    apart = "" if found.is_told_apart else ", not told apart"
    return f"{text} ({amount(report, found.low)} to {amount(report, found.high)}{apart})"


def _doubt(found: Sequence[Difference]) -> str:
    """A last word where nothing, or nothing but losses, is sure."""
    known = [each for each in found if each.low is not None]
    if not known:
        return ""
    worse = [each for each in known if each.is_told_apart and each.gain < 0]
    if worse:
        places = ", ".join(f"{each.row} on {each.split}" for each in worse)
        return f" It is worse than {places}, beyond what chance explains."
    if not any(each.is_told_apart for each in known):
        return " No difference here is beyond what chance explains (95 %): any of them may be the better model."
    return ""
