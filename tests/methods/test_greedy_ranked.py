from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixopt
from mixopt import SpecError
from mixopt.methods import greedy
from mixopt.weights.pool import Pool
from tests.methods.landscape import Landscape, ingredients_of, random_pool
from tests.methods.linear_logits import LinearLogits


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("ranked"), ingredients=7)


def naive_ranked(landscape: LinearLogits, patience: int, strict: bool) -> tuple[list[str], list[str]]:
    """Members, and the columns in the order tried, where the mean of logits is exact: soups predicted by scoring."""
    sign = landscape.metric.sign
    places = {name: place for place, name in enumerate(landscape.pool.columns)}

    def soup(members: list[str]) -> float:
        row = np.zeros(len(places))
        row[[places[name] for name in members]] = 1 / len(members)
        return sign * landscape.metric.of(landscape.labels, landscape.outcomes(row))

    ranked = sorted(landscape.pool.ingredients, key=lambda name: -soup([name]))
    members, waiting, tried, refused = ranked[:1], ranked[1:], ranked[:1], 0
    while waiting and refused < patience:
        name = max(waiting, key=lambda each: soup([*members, each]))
        waiting.remove(name)
        tried.append(name)
        new, old = soup([*members, name]), soup(members)
        if new > old or (new == old and not strict):
            members, refused = [*members, name], 0
        else:
            refused += 1
    return members, tried


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("rule", ["at-least", "strict"])
@pytest.mark.parametrize("patience", [1, 2, 7])
def test_candidates_come_by_the_mean_of_logits(rule: Any, metric: str, patience: int, pool: Pool) -> None:
    lengths = set()
    for seed in range(12):
        landscape: Any = LinearLogits(pool, seed, metric)
        choice = greedy.choose(landscape, ingredients_of(pool), seed=0, rule=rule, order="ranked", patience=patience)
        members, tried = naive_ranked(landscape, patience, rule == "strict")
        curve = choice.curves["greedy"]
        assert [step["name"] for step in curve] == tried
        assert choice.notes == {"rule": rule, "chosen": members, "order": "ranked", "patience": patience}
        assert choice.mix.coefficients[0] == pytest.approx([(name in members) / len(members) for name in pool.columns])
        assert landscape.soups == len(tried) - 1
        # Kept as float16; one sample of 300 may fall to another class for it.
        assert all(step["predicted"] == pytest.approx(step["value"], abs=0.004) for step in curve[1:])
        lengths.add(len(tried))
    assert len(lengths) > 1 or patience == 7


def test_a_wrong_prediction_costs_an_evaluation_and_no_more(pool: Pool) -> None:
    off = 0
    for seed in range(10):
        landscape: Any = LinearLogits(pool, seed, bend=3.0)
        choice = greedy.choose(landscape, ingredients_of(pool), seed=0, order="ranked")
        curve = choice.curves["greedy"]
        best = curve[0]["value"]
        for step in curve[1:]:
            assert step["added"] == (step["value"] >= best), "by the score, whatever was predicted"
            best = max(best, step["value"])
            off += (step["predicted"] >= best) != step["added"]
        assert landscape.score(choice.mix).value == best
    assert off


def test_ranked_stops_after_two_refusals_and_the_others_try_all(pool: Pool) -> None:
    stopped = 0
    for seed in range(20):
        landscape: Any = LinearLogits(pool, seed)
        curve = greedy.choose(landscape, ingredients_of(pool), seed=0, order="ranked").curves["greedy"]
        stopped += len(curve) < 7
        assert len(curve) == 7 or [step["added"] for step in curve[-2:]] == [False, False]
        every = greedy.choose(landscape, ingredients_of(pool), seed=0, order="ranked", patience=0).curves["greedy"]
        assert len(every) == 7
        assert every[: len(curve)] == curve
    assert stopped
    assert "patience" not in greedy.choose(landscape, ingredients_of(pool), seed=0).notes


@pytest.mark.parametrize("order", ["best", "random"])
def test_patience_cuts_any_order_short(order: Any, pool: Pool) -> None:
    cut = 0
    for seed in range(20):
        landscape: Any = Landscape(pool, seed, levels=12)
        every = greedy.choose(landscape, ingredients_of(pool), seed=seed, order=order).curves["greedy"]
        some = greedy.choose(landscape, ingredients_of(pool), seed=seed, order=order, patience=1)
        curve = some.curves["greedy"]
        refusals = [number for number, step in enumerate(every) if not step["added"]]
        assert curve == (every[: refusals[0] + 1] if refusals else every)
        assert some.notes["patience"] == 1
        cut += len(curve) < len(every)
    assert cut > 1


def test_one_column_is_the_soup(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    one = {"step_100": ingredients_of(pool)["step_100"]}
    assert greedy.choose(landscape, one, seed=0, order="ranked").mix == one["step_100"]
    assert len(landscape.asked) == 1


def test_without_logits_another_order_is_advised(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    landscape.has_logits = False
    with pytest.raises(SpecError, match=r"^order=ranked: it needs the logits .* use order=best or random$"):
        greedy.choose(landscape, ingredients_of(pool), seed=0, order="ranked")


def test_a_patience_below_zero_is_refused(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    with pytest.raises(SpecError, match="patience=-1: expected 0, which tries all"):
        greedy.choose(landscape, ingredients_of(pool), seed=0, patience=-1)
    assert not landscape.asked


def test_on_models(clip_pool_template: Path, tmp_path: Path) -> None:
    rows = "greedy:ranked,greedy:patience=1,wise_ft:few,wise_ft"
    result = mixopt.compare(
        clip_pool_template, methods=rows, cache=tmp_path / "cache", out=tmp_path / "run", precision="fp32"
    )
    found = {row["name"]: row for row in result.report.as_dict()["methods"]}
    ranked, few, every = found["greedy:ranked"], found["wise_ft:few"], found["wise_ft"]
    columns = len(ranked["curves"]["greedy"])
    assert ranked["notes"]["patience"] == 2
    assert ranked["evaluations"] >= columns
    assert few["evaluations"] <= every["evaluations"]
    whole = {point["x"]: point for point in every["sweep"]}
    assert all(point == whole[point["x"]] for point in few["sweep"]), "real scores, on every split"
