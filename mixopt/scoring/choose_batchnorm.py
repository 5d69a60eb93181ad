"""How the BatchNorm statistics of mixes are made: decided once per run, recorded, never silent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mixopt.errors import DataError, ScoreError, SpecError
from mixopt.listener import Listener
from mixopt.scoring.batchnorm import Recompute
from mixopt.scoring.objective import Objective
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

AUTO = "auto"
AVERAGE = "average"
RECOMPUTE = "recompute"


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """How the statistics are made.

    Attributes:
        mode: ``average`` or ``recompute``.
        layers: How many layers have statistics that differ between the checkpoints.
        recompute: Sets them anew, where that is the mode.
        soup: The columns of the uniform soup, where both modes were tried on it.
        scores: Its score by mode; None where one cannot be had.
    """

    mode: str
    layers: int
    recompute: Recompute | None = None
    soup: tuple[str, ...] = ()
    scores: dict[str, float | None] | None = None

    @property
    def key(self) -> str:
        """A text that is another one wherever the statistics could be others for the same weights."""
        return self.mode if self.recompute is None else self.recompute.key

    @property
    def images(self) -> int:
        """How many samples they are recomputed from; 0 where they are averaged."""
        return 0 if self.recompute is None else self.recompute.images

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values, for a report."""
        tried = {} if self.scores is None else {"soup": list(self.soup), "scores": self.scores}
        own = self.recompute
        anew = {} if own is None else {"images": own.images, "batch": own.batch, "key": own.key}
        return {"mode": self.mode, "layers": self.layers, **tried, **anew}


def choose_batchnorm(
    asked: str,
    layers: int,
    recompute: Callable[[], Recompute],
    scoring: Callable[[Recompute | None], Objective],
    soup: Mix,
    listener: Listener,
) -> BatchNorm:
    """What is asked for, or with ``auto`` the better of the two on the uniform soup.

    Args:
        asked: ``average``, ``recompute`` or ``auto``.
        layers: How many layers have statistics that differ.
        recompute: Makes what sets them anew.
        scoring: An objective whose mixes' statistics are set so, or averaged.
        soup: The uniform soup.
        listener: Told what was chosen, and why.

    Raises:
        DataError: ``recompute`` was asked for, and there are too few samples for it.
    """
    if not layers:
        if asked == RECOMPUTE:
            listener.warn(
                "--batchnorm recompute: the checkpoints differ in no BatchNorm statistics; nothing is recomputed"
            )
        return BatchNorm(AVERAGE, layers)
    which = f"BatchNorm statistics of {layers} layers"
    averaged = f"{which} are averaged with the weights (batchnorm: average)"
    if asked == AVERAGE:
        listener.info(averaged)
        return BatchNorm(AVERAGE, layers)
    try:
        anew = recompute()
    except DataError as error:
        if asked == RECOMPUTE:
            raise
        listener.warn(f"batchnorm: auto, but {error}")
        listener.info(averaged)
        return BatchNorm(AVERAGE, layers)
    scores: dict[str, float | None] | None = None
    if asked == AUTO:
        average = scoring(None)
        scores = _scores(average, scoring(anew), soup, listener)
        shown = ", ".join(
            f"{mode} {'not finite' if value is None else f'{value:.4f}'}" for mode, value in scores.items()
        )
        listener.info(f"batchnorm: auto, by {average.metric.name} of the uniform soup on {VALIDATION}: {shown}")
        of_average, of_anew = scores.values()
        if of_anew is None or (of_average is not None and not average.metric.better(of_anew, of_average)):
            listener.info(averaged)
            return BatchNorm(AVERAGE, layers, None, soup.support(), scores)
    listener.info(
        f"{which} are recomputed for every mix of several checkpoints, from {anew.images:,} images of "
        f"{VALIDATION}, without their labels (batchnorm: recompute)"
    )
    return BatchNorm(RECOMPUTE, layers, anew, soup.support() if scores else (), scores)


def _scores(average: Objective, recomputing: Objective, soup: Mix, listener: Listener) -> dict[str, float | None]:
    """The soup's score with averaged and with recomputed statistics; None where one cannot be had, with a warning."""
    scores: dict[str, float | None] = {}
    total = 2 * average.samples
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        listener.progress("comparing BatchNorm statistics", done, total)

    for mode, objective in ((AVERAGE, average), (RECOMPUTE, recomputing)):
        try:
            scores[mode] = objective.counting(on_batch=on_batch).score(soup).value
        except (ScoreError, SpecError) as error:
            listener.warn(f"batchnorm: auto, the uniform soup with {mode}: {error}")
            scores[mode] = None
    return scores
