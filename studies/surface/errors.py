"""How far a surface's predictions are off: by radius, dimensions, freedom, BatchNorm statistics and precision.

    OMP_NUM_THREADS=1 python studies/surface/errors.py --models DIR --name NAME --limit 1000 --vary radius,freedom,dims

For every cell, mixes are drawn uniformly from the box of a space around the uniform soup and scored; a surface is
fitted to the first of them, and predicts the last 30, which it never saw. Prints a table, adds the pool's rows to
errors.json in ``--results`` and draws errors.svg of all pools there. Mixes come from the cache where they were scored
before.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from mixopt import load_spec
from mixopt.assemble import assemble
from mixopt.listener import Listener
from mixopt.reporting.plots import COLOURS, MARKS, picture
from mixopt.scoring.objective import Objective
from mixopt.scoring.outcomes import Outcomes
from mixopt.spaces.linear import Affine, Depth, Shared
from mixopt.surface.fitting import Surface, fit
from mixopt.surface.outputs import outputs_of
from mixopt.values.groups import make_groups
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.metrics import METRICS
from mixopt.values.mix import constant, one_hot
from mixopt.values.samples import VALIDATION

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

SPACES: dict[str, type[Affine]] = {"shared": Shared, "depth": Depth, "block": Affine}
RADII = (0.05, 0.1, 0.2, 0.4, 0.8)
NEVER_SCORED = 30
HEAD = (
    "varied", "space", "dims", "radius", "BatchNorm", "precision", "scored", "spread", "logits off by", "expected",
    "explained", "loss off by", "rho", "accuracy off by", "rho",
)  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """What mixes are drawn from, and how many a surface is fitted to.

    Attributes:
        varied: What it is one of a series of.
        space: One of `SPACES`.
        radius: Of the space.
        ingredients: How many move, the first ones; 0 moves all.
        batchnorm: See ``--batchnorm``.
        precision: See ``--precision``.
        scored: Mixes that the surface is fitted to.
        far: Whether it is fitted to every checkpoint alone as well.
    """

    varied: str
    space: str = "shared"
    radius: float = 0.1
    ingredients: int = 0
    batchnorm: str = "average"
    precision: str = "fp32"
    scored: int = 50
    far: bool = False


SERIES: dict[str, tuple[Cell, ...]] = {
    "radius": tuple(Cell("radius", radius=radius) for radius in RADII),
    "freedom": tuple(Cell("freedom", space=space, radius=radius) for radius in (0.1, 0.4) for space in SPACES),
    "dims": tuple(Cell("dims", radius=0.4, ingredients=ingredients) for ingredients in (4, 8, 0)),
    "scored": tuple(Cell("scored", space="block", scored=scored) for scored in (50, 100, 200)),
    "far": tuple(
        Cell("far", space=space, scored=scored, far=far)
        for space, scored in (("shared", 10), ("block", 100), ("block", 200))
        for far in (False, True)
    ),
    "batchnorm": tuple(
        Cell("batchnorm", radius=radius, batchnorm=kind) for radius in (0.1, 0.4) for kind in ("average", "recompute")
    ),
    "precision": tuple(
        Cell("precision", radius=radius, precision=kind) for radius in (0.05, 0.2) for kind in ("fp32", "bf16")
    ),
}


class Drawn:
    """Mixes of cells and what they do on the validation split, the same ones for all numbers of mixes scored.

    Args:
        given: The command line's.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._objectives: dict[tuple[str, str], Objective] = {}

    def of(self, cell: Cell) -> tuple[int, Floats, list[Outcomes], NDArray[np.int64]]:
        """Mixes of a cell, the start first.

        Returns:
            The space's dimensions; coefficients ``[n, groups, columns]`` and outcomes, the last 30 of mixes that no
            surface is to be fitted to; and labels ``[samples]``.
        """
        objective = self._objective(cell)
        pool = objective.pool
        names = [name for name in pool.columns if name != pool.base]
        start = constant(
            make_groups("block", pool.sizes),
            pool.columns,
            [1 / len(names) if name in names else 0.0 for name in pool.columns],
        )
        space = SPACES[cell.space](start, names[: cell.ingredients or None], cell.radius)
        points = np.vstack([self._points(0, cell.scored, space.dims), self._points(1, NEVER_SCORED, space.dims)])
        points[0] = 0
        split = objective.evaluators[VALIDATION].split
        mixes = [space.to_mix(point) for point in points]
        if cell.far:
            mixes[cell.scored : cell.scored] = [one_hot(start.groups, pool.columns, name) for name in pool.columns]
        outcomes = [objective.outcomes(mix, VALIDATION, len(split)) for mix in mixes]
        return space.dims, np.stack([mix.coefficients for mix in mixes]), outcomes, split.labels

    def _points(self, stream: int, count: int, dims: int) -> Floats:
        return np.random.default_rng([self._given.seed, stream]).uniform(-1, 1, (count, dims))

    def _objective(self, cell: Cell) -> Objective:
        key = (cell.batchnorm, cell.precision)
        if key not in self._objectives:
            options: dict[str, Any] = {
                "models": self._given.models,
                "limit": self._given.limit,
                "batchnorm": cell.batchnorm,
                "precision": cell.precision,
                "cache": self._given.cache,
                "image_size": self._given.image_size,
            }
            said = {name: value for name, value in options.items() if value is not None}
            self._objectives[key] = assemble(load_spec(said), Listener()).objective.needing("logits")
        return self._objectives[key]


def kept_of(outcomes: Outcomes) -> KeptLogits:
    """The logits of outcomes.

    Raises:
        SystemExit: There are none: the mix collapsed.
    """
    if outcomes.logits is None:
        raise SystemExit("a mix gave logits that are no numbers: draw from a smaller radius")
    return outcomes.logits


def measure(cell: Cell, drawn: Drawn) -> dict[str, Any]:
    """One row of the table."""
    dims, coefficients, outcomes, labels = drawn.of(cell)
    scored, never = slice(-NEVER_SCORED), slice(-NEVER_SCORED, None)
    surface = fit(coefficients[scored], [kept_of(each) for each in outcomes[scored]], labels)
    real = np.stack([outputs_of(kept_of(each), surface.columns) for each in outcomes[never]])
    off = surface.outputs(coefficients[never]).numpy() - real
    changes = real - surface.reference.numpy()
    return {
        **asdict(cell),
        "dims": dims,
        "spread": root_mean_square(changes),
        "logits": root_mean_square(off),
        "expected": root_mean_square(surface.expected(coefficients[never])),
        "left_out": root_mean_square(surface.left_out.errors[1:]),
        "explained": surface.explained(),
        **metrics(surface, coefficients[never], outcomes[never], labels),
    }


def metrics(
    surface: Surface, coefficients: Floats, outcomes: Sequence[Outcomes], labels: NDArray[np.int64]
) -> dict[str, float]:
    """By how much predicted losses and accuracies are off, and Spearman's rho between them and the real ones."""
    predicted = list(surface.outcomes(coefficients))
    found: dict[str, float] = {}
    for name in ("nll", "accuracy"):
        said = np.array([METRICS[name].of(labels, each) for each in predicted])
        real = np.array([METRICS[name].of(labels, each) for each in outcomes])
        found[name] = root_mean_square(said - real)
        found[f"{name}_bias"] = float(np.mean(said - real))
        found[f"{name}_rho"] = float(spearmanr(said, real).statistic) if np.ptp(said) and np.ptp(real) else 0.0
        found[f"{name}_spread"] = float(np.std(real))
    return found


def root_mean_square(values: NDArray[Any]) -> float:
    """Over all entries."""
    return float(np.sqrt(np.mean(values.astype(np.float64) ** 2)))


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The table in Markdown."""
    yield f"| {' | '.join(HEAD)} |"
    yield "|---" * len(HEAD) + "|"
    for row in rows:
        loss, accuracy = (f"{row[name]:.4f} | {row[f'{name}_rho']:.2f}" for name in ("nll", "accuracy"))
        yield (
            f"| {row['varied']} | {row['space']} | {row['dims']} | {row['radius']:g} | {row['batchnorm']} "
            f"| {row['precision']} | {row['scored']}{' and far' if row['far'] else ''} | {row['spread']:.3f} "
            f"| {row['logits']:.3f} | {row['expected']:.3f} | {row['explained']:.1%} | {loss} | {accuracy} |"
        )


def draw(pools: dict[str, Sequence[dict[str, Any]]]) -> str:
    """What logits are off by against the radius, and against what that was expected to be, as SVG."""

    def on(figure: Figure) -> None:
        from matplotlib.ticker import NullFormatter

        grown, known = figure.subplots(1, 2, sharey=True)
        for number, (name, rows) in enumerate(pools.items()):
            style: dict[str, Any] = {"color": COLOURS[number], "markersize": 5, "linewidth": 1}
            for place, (kind, some) in enumerate(by_kind(rows).items()):
                off, label = [row["logits"] for row in some], f"{name}: {kind}"
                grown.plot([row["radius"] for row in some], off, f"{MARKS[place]}-", label=label, **style)
            known.plot([row["expected"] for row in rows], [row["logits"] for row in rows], "o", **style)
        low, high = (function([*known.get_xlim(), *known.get_ylim()]) for function in (min, max))
        known.plot([max(low, 1e-3), high], [max(low, 1e-3), high], color="#999999", linewidth=1, zorder=0)
        grown.set(xlabel="radius", ylabel="predicted logits off by, nats")
        known.set(xlabel="expected to be off by, nats")
        for axes in (grown, known):
            axes.set(xscale="log", yscale="log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.xaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_major_formatter("{x:g}")
        grown.set_xticks(RADII)
        figure.legend(*grown.get_legend_handles_labels(), loc="outside right upper")

    return picture(9.0, 3.4, on)


def by_kind(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Of one pool, what differs in the radius alone, in its order, with as many mixes scored as most; by what it is."""
    usual = Counter(row["scored"] for row in rows).most_common(1)[0][0]
    found: dict[str, dict[float, dict[str, Any]]] = {}
    for row in rows:
        if row["scored"] == usual and not row["ingredients"] and not row["far"]:
            beside = [
                row[name] for name, plain in (("batchnorm", "average"), ("precision", "fp32")) if row[name] != plain
            ]
            found.setdefault(" ".join([row["space"], *beside]), {})[row["radius"]] = row
    return {kind: [some[radius] for radius in sorted(some)] for kind, some in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True)
    parser.add_argument("--name", required=True, help="of the pool, in the table")
    parser.add_argument("--vary", default="radius,freedom,dims")
    parser.add_argument("--limit", type=int, default=1000)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--scored", type=int, help="fit to so many at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent)
    given = parser.parse_args(arguments)
    drawn = Drawn(given)
    rows = []
    for cell in (cell for varied in given.vary.split(",") for cell in SERIES[varied]):
        rows.append(measure(replace(cell, scored=min(cell.scored, given.scored or cell.scored)), drawn))
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print("\n".join(lines(rows)))
    path = given.results / "errors.json"
    pools = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    pools[given.name] = rows
    path.write_text(json.dumps(pools, indent=1) + "\n", encoding="utf-8")
    (given.results / "errors.svg").write_text(draw(pools), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
