"""What a prediction spares where every candidate is scored: greedy soups in a predicted order, sweeps of few points.

    OMP_NUM_THREADS=1 python studies/surface/ranked.py greedy --models DIR --name NAME --pick 10 --seeds 4
    OMP_NUM_THREADS=1 python studies/surface/ranked.py sweeps --models DIR --name NAME --limit 1000

``greedy``: of so many checkpoints drawn for each seed, greedy soups in every order, each trying all candidates; what
stopping after so many refusals in a row would have given is the beginning of the same run. ``ranked by surface`` is an
order that no row of a comparison has: that of a response surface fitted to all that was scored, the soup its reference.
``sweeps``: WiSE-FT and LiNeS from the base to the first four checkpoints, and WiSE-FT to the uniform soup, all eleven
points and few. Prints a table, and adds the pool's rows to ranked.json in ``--results``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mixopt import load_spec
from mixopt.assemble import assemble
from mixopt.comparison.running import ingredient_mixes
from mixopt.listener import Listener
from mixopt.methods import greedy, lines, wise_ft
from mixopt.methods.individual import ranking
from mixopt.scoring.objective import Objective
from mixopt.surface.fitting import fit
from mixopt.values.kept_logits import KeptLogits
from mixopt.values.metrics import Metric
from mixopt.values.mix import Mix, combine
from mixopt.values.samples import VALIDATION

PATIENCE = (1, 2, 3, 0)
TEST = "test"
COUNT = 4
ROWS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy:strict": {"rule": "strict"},
    "greedy:random": {"order": "random"},
    "greedy:ranked": {"order": "ranked"},
}
Curve = Sequence[Mapping[str, Any]]


def soup(columns: Mapping[str, Mix], members: Sequence[str]) -> Mix:
    """The mean of some columns."""
    return combine([columns[name] for name in members], [1 / len(members)] * len(members))


def kept_of(objective: Objective, mix: Mix) -> KeptLogits:
    """The logits of a mix.

    Raises:
        SystemExit: There are none.
    """
    kept = objective.score(mix).outcomes.logits
    if kept is None:
        raise SystemExit("the pool gives no logits")
    return kept


def by_surface(objective: Objective, columns: Mapping[str, Mix]) -> Curve:
    """The greedy soup in the order of a response surface, fitted anew after every score; all are tried."""
    metric, labels = objective.metric, objective.evaluators[VALIDATION].split.labels[: objective.samples]
    (first, best), *others = ranking(objective, columns)
    chosen, waiting, scored = [first], [name for name, _ in others], list(columns.values())
    curve: list[dict[str, Any]] = [{"name": first, "value": best, "added": True}]
    while waiting:
        reference = soup(columns, chosen)
        mixes = [reference, *(mix for mix in scored if mix != reference)]
        surface = fit(np.stack([mix.coefficients for mix in mixes]), (kept_of(objective, mix) for mix in mixes), labels)
        candidates = np.stack([soup(columns, [*chosen, name]).coefficients for name in waiting])
        values = [metric.of(labels, each) for each in surface.outcomes(candidates, metric.needs)]
        name = waiting.pop(int(np.argmax(metric.sign * np.array(values))))
        scored.append(soup(columns, [*chosen, name]))
        value = objective.score(scored[-1]).value
        added = metric.at_least(value, best)
        curve.append({"name": name, "value": value, "added": added})
        if added:
            chosen, best = [*chosen, name], value
    return curve


def cut(curve: Curve, patience: int) -> tuple[list[str], float, int]:
    """Members, score and soups scored where a run stops after so many refusals in a row; 0 never stops."""
    refused, stop = 0, len(curve)
    for place, step in enumerate(curve[1:], start=1):
        refused = 0 if step["added"] else refused + 1
        if patience and refused >= patience:
            stop = place + 1
            break
    added = [step for step in curve[:stop] if step["added"]]
    return [step["name"] for step in added], added[-1]["value"], stop - 1


def greedy_soups(objective: Objective, pick: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Every order's soup by how early it stops, seed by seed."""
    every = ingredient_mixes(objective)
    for seed in range(seeds):
        drawn = np.random.default_rng(seed).choice(len(every), min(pick, len(every)), replace=False)
        columns = {name: mix for place, (name, mix) in enumerate(every.items()) if place in drawn}
        curves: dict[str, Curve] = {
            row: greedy.choose(objective, columns, seed=seed, patience=0, **options).curves["greedy"]
            for row, options in ROWS.items()
        }
        curves["ranked by surface"] = by_surface(objective, columns)
        for row, curve in curves.items():
            for patience in PATIENCE:
                members, value, scored = cut(curve, patience)
                # In random order, columns are not scored alone, but for the first.
                alone = 1 if row == "greedy:random" else len(columns)
                yield {
                    "row": row,
                    "patience": patience,
                    "seed": seed,
                    "evaluations": alone + scored,
                    "members": members,
                    "search": value,
                    "test": objective.score(soup(columns, members), TEST).value,
                }


def sweeps(objective: Objective, metric: Metric) -> Iterator[dict[str, Any]]:
    """Every sweep with all points and with few."""
    every = ingredient_mixes(objective)
    some = dict(list(every.items())[:COUNT])
    ends = [(wise_ft, name, mix) for name, mix in some.items()] + [(lines, name, mix) for name, mix in some.items()]
    for method, name, mix in [*ends, (wise_ft, "uniform", soup(every, list(every)))]:
        whole = method.choose(objective, {name: mix}, seed=0)
        few = method.choose(objective, {name: mix}, seed=0, points="few")
        values = {point["x"]: point["value"] for point in whole.curves["alpha"]}
        yield {
            "row": f"{method.__name__.rpartition('.')[2]}:{name}",
            "scored": len(few.curves["alpha"]),
            "alpha": few.notes["alpha"],
            "best": whole.notes["alpha"],
            "loses": metric.sign * (values[whole.notes["alpha"]] - values[few.notes["alpha"]]),
        }


def greedy_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Means over seeds in Markdown."""
    yield "| order | stops after | evaluations | members | selection | test |"
    yield "|---|---|---|---|---|---|"
    for row, patience in dict.fromkeys((each["row"], each["patience"]) for each in rows):
        some = [each for each in rows if (each["row"], each["patience"]) == (row, patience)]
        evaluations, search, test = (np.mean([each[key] for each in some]) for key in ("evaluations", "search", "test"))
        members = np.mean([len(each["members"]) for each in some])
        stops = {0: "never", 1: "1 refusal"}.get(patience, f"{patience} refusals")
        yield f"| {row} | {stops} | {evaluations:.2f} | {members:.2f} | {search:.4f} | {test:.4f} |"


def sweep_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line a sweep in Markdown, and what they come to."""
    yield "| sweep | scored of 11 | alpha of few | of all | loses |"
    yield "|---|---|---|---|---|"
    for row in rows:
        yield f"| {row['row']} | {row['scored']} | {row['alpha']:g} | {row['best']:g} | {row['loses']:.4f} |"
    same = sum(row["alpha"] == row["best"] for row in rows)
    scored, loses = (np.mean([row[key] for row in rows]) for key in ("scored", "loses"))
    yield f"| all | {scored:.1f} | the same in {same} of {len(rows)} | | {loses:.4f} |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["greedy", "sweeps"])
    parser.add_argument("--models", required=True)
    parser.add_argument("--name", required=True, help="of the pool, in the results")
    parser.add_argument("--pick", type=int, default=10, help="checkpoints drawn for each seed")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent)
    given = parser.parse_args(arguments)
    options = {name: getattr(given, name) for name in ("models", "limit", "image_size", "cache")}
    spec = load_spec({name: value for name, value in options.items() if value is not None})
    objective = assemble(spec, Listener()).objective.needing("logits").whole()
    if given.what == "greedy":
        rows = list(greedy_soups(objective, given.pick, given.seeds))
        print("\n".join(greedy_lines(rows)))
    else:
        rows = list(sweeps(objective, objective.metric))
        print("\n".join(sweep_lines(rows)))
    path = given.results / "ranked.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    known.setdefault(given.name, {})[given.what] = rows
    path.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
