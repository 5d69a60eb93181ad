"""Sweeps of which few points are scored."""

from __future__ import annotations

from typing import Any

import pytest

from mixopt import ScoreError, SpecError
from mixopt.methods import base_mix, lines, wise_ft
from mixopt.weights.pool import Pool
from tests.methods.landscape import ingredients_of, random_pool
from tests.methods.linear_logits import LinearLogits


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("few"))


def swept(method: Any, landscape: Any, **options: Any) -> Any:
    return method.choose(landscape, {"one": ingredients_of(landscape.pool)["step_100"]}, seed=0, **options)


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("bend", [0.0, 0.6])
def test_few_points_find_the_best_of_all(metric: str, bend: float, pool: Pool) -> None:
    spared = 0
    for seed in range(8):
        landscape: Any = LinearLogits(pool, seed, metric, bend)
        every = swept(wise_ft, landscape)
        landscape.asked.clear()
        few = swept(wise_ft, landscape, points="few")
        asked = len(landscape.asked)
        values = {point["x"]: point["value"] for point in every.curves["alpha"]}
        curve = few.curves["alpha"]
        assert curve == [point for point in every.curves["alpha"] if point["x"] in few.sweep], "real scores, ascending"
        assert list(few.sweep) == [point["x"] for point in curve]
        assert {0.0, 0.5, 1.0} <= set(few.sweep)
        best = few.notes["alpha"]
        near = {round(best + step, 1) for step in (-0.1, 0.0, 0.1)} & set(values)
        assert near <= set(few.sweep), "what lies beside the best was scored"
        # Logits are kept to 11 bits: of 300 samples one may be told otherwise.
        assert values[best] == pytest.approx(values[every.notes["alpha"]], abs=0.004)
        assert asked == len(curve)
        spared += 11 - asked
    assert spared > 8 * 11 / 3


def test_lines_takes_few_points_too(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    every, few = swept(lines, landscape), swept(lines, landscape, points="few")
    assert few.mix == every.mix
    assert few.notes == every.notes
    assert len(few.curves["alpha"]) < 11


def test_fewer_alphas_than_it_begins_with(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    for alphas in ((0.3,), (0.2, 0.7), (0.0, 0.5, 1.0)):
        few = swept(wise_ft, landscape, points="few", alphas=alphas)
        assert few.mix == swept(wise_ft, landscape, alphas=alphas).mix
        assert len(few.sweep) == len(alphas)


def test_points_without_a_score_are_told_and_gone_around(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    landscape.gone = (0.0, 0.5)
    few = swept(wise_ft, landscape, points="few")
    assert few.notes["not_finite"] == [0.0, 0.5]
    assert few.notes["alpha"] not in (0.0, 0.5)
    landscape.gone = tuple(tenth / 10 for tenth in range(11))
    with pytest.raises(ScoreError):
        swept(wise_ft, landscape, points="few")


def test_a_line_from_a_model_to_itself(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    base = base_mix(landscape, ingredients_of(pool))
    few = wise_ft.choose(landscape, {"same": base}, seed=0, points="few")
    assert few.notes["alpha"] == 0.0
    assert few.mix == base


def test_without_logits_all_points_are_advised(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    landscape.has_logits = False
    with pytest.raises(SpecError, match=r"^points=few: it needs the logits .* use points=all$"):
        swept(wise_ft, landscape, points="few")


def test_one_alpha_has_no_points(pool: Pool) -> None:
    landscape: Any = LinearLogits(pool)
    with pytest.raises(SpecError, match=r"found alpha=0.5 and points=few"):
        swept(wise_ft, landscape, points="few", alpha=0.5)
