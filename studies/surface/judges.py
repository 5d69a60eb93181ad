"""Who may judge: what cross-fitting says that a mix gains, by samples that taught the start or not, and what it gains.

    OMP_NUM_THREADS=1 python studies/surface/judges.py --models DIR --name NAME [--scored 40] [--signals nll,smooth]
        [OPTION=VALUE ...]

Options are those of ``mixopt search``. Points of a Sobol sequence around the start are scored on all validation
samples, a surface is fitted to them, and a mix is cross-fitted: all samples judge, and then those alone that
``confirm`` holds back from what teaches the start. What is chosen is scored on the test splits. Signals are metrics, or
``smooth``: accuracy less the loss. Prints a table, and puts the rows into judges.json in ``--results``.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from mixopt import load_spec
from mixopt.assemble import assemble
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.stages.plan import plan_search
from mixopt.stages.space import make_space
from mixopt.stages.start import find_start
from mixopt.study import cross_fit, make_folds, regions_of
from mixopt.study.crossfit import CrossFit
from mixopt.study.landscape import Landscape, Steering
from mixopt.study.surface_sampler import design
from mixopt.surface.fitting import fit
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.metrics import METRICS, smoothed
from mixopt.values.mix import Mix
from mixopt.values.samples import VALIDATION

HALF = 0.5
SMOOTH = "smooth"
SHOWN = ("nll", "accuracy")


def judged(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each signal and choice of judges."""
    options = {name: _value(text) for name, text in (each.split("=", 1) for each in arguments.options)}
    spec = load_spec({"models": arguments.models, "precision": "fp32", **options})
    assembly = assemble(spec, Listener())
    plan = plan_search(spec, assembly)
    start = find_start(plan, assembly, Listener())
    objective = assembly.objective.whole().needing("logits")
    space, labels = make_space(plan, start, objective), objective.evaluators[VALIDATION].split.labels
    points = np.vstack([np.zeros((1, space.dims)), design(space.dims, arguments.scored, HALF, 0)])
    mixes = [space.to_mix(point) for point in points]
    kept = [_logits(objective, mix) for mix in mixes]
    surface = fit(np.stack([mix.coefficients for mix in mixes]), kept, labels)
    reference = {VALIDATION: objective.outcomes(mixes[0], VALIDATION, len(labels))}
    rows = []
    for name in arguments.signals.split(","):
        signal = smoothed(METRICS["accuracy"]) if name == SMOOTH else METRICS[name]
        landscape = Landscape(space, {VALIDATION: Steering(surface, labels, 1.0)}, signal)
        for first in sorted({0, assembly.objective.tuning} - {len(labels)}):
            folds = make_folds({VALIDATION: labels}, first)
            found = cross_fit(landscape, regions_of(space, HALF), reference, folds, seed=0)
            row = {"name": arguments.name, "signal": name, "samples": len(labels), "dims": space.dims}
            judges = {"judging": len(labels) - first, "share": found.share, "gain": found.gain, "error": found.error}
            rows.append({**row, **judges, **_looked_at(objective.steered_by(signal), mixes[0], found, first)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def _looked_at(objective: Objective, start: Mix, found: CrossFit, first: int) -> dict[str, Any]:
    """What the mix is said to gain by loss and accuracy, and what it gains on other splits; with standard errors."""
    if not found.share:
        return {}
    labels = objective.evaluators[VALIDATION].split.labels[first:]
    theirs = objective.outcomes(start, VALIDATION, first + len(labels)).rest(first)
    said = {name: _mean(METRICS[name].gains(labels, found.outcomes[VALIDATION], theirs)) for name in SHOWN}
    tests: dict[str, Any] = {}
    for split in [name for name in objective.evaluators if name != VALIDATION]:
        labels = objective.evaluators[split].split.labels
        ours, theirs = (objective.outcomes(mix, split, len(labels)) for mix in (found.mix, start))
        metrics = {"signal": objective.signal, **{name: METRICS[name] for name in SHOWN}}
        tests[split] = {name: _mean(metric.gains(labels, ours, theirs)) for name, metric in metrics.items()}
    return {"said": said, "tests": tests}


def _mean(gains: Any) -> list[float]:
    return [float(gains.mean()), float(gains.std(ddof=1)) / math.sqrt(len(gains))]


def _logits(objective: Objective, mix: Mix) -> KeptLogits:
    found = objective.outcomes(mix, VALIDATION, objective.count(VALIDATION)).logits
    if found is None:
        raise SystemExit("models of this pool give no logits")
    return found


def _value(text: str) -> Any:
    """An option's value: a number where it is one."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def table_of(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, with the gains on the first test split beside what was said."""
    head = ["pool, start", "signal", "judging", "gain of the procedure", "taken", "gain on test"]
    head += [f"{name}: {what}" for name in SHOWN for what in ("said", "on test")]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["name"], row["signal"], f"{row['judging']:,}", _pair([row["gain"], row["error"]])]
        first: dict[str, list[float]] = next(iter(row.get("tests", {}).values()), {})
        cells += [f"{row['share']:.0%}", _pair(first.get("signal"))]
        for name in SHOWN:
            cells += [_pair(row.get("said", {}).get(name)), _pair(first.get(name))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _pair(found: list[float] | None) -> str:
    return "" if found is None else f"{found[0]:+.4f} ± {found[1]:.4f}"


def main(arguments: list[str]) -> int:
    """Score, choose and look."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--scored", type=int, default=40)
    parser.add_argument("--signals", default="nll,smooth")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent)
    parser.add_argument("options", nargs="*")
    options = parser.parse_args(arguments)
    file = options.results / "judges.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    rows = [*(row for row in before if row["name"] != options.name), *judged(options)]
    write_json(file, rows)
    print(table_of(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
