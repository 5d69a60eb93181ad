"""ManifoldMix against a naive reading of the paper's steps, and its search against optima that are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mixopt import Mix, SpecError, combine, one_hot
from mixopt.methods import Chosen, manifold
from mixopt.values.groups import make_groups
from mixopt.values.metrics import METRICS, Metric
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool
from tests.conftest import random_mix, random_states
from tests.methods.landscape import Landscape, ingredients_of, random_pool, whole

LIVE = ["stem", "blocks", "head", "scale"]
Rows = NDArray[np.float64]
Score = Callable[[Rows], float]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("manifold"))


@pytest.fixture
def shared(make_pool: Callable[..., Pool]) -> Pool:
    """Three ingredients with one head; the base has another."""
    states = random_states(4, seed=5)
    for state in states[1:3]:
        state["head.weight"] = states[0]["head.weight"].clone()
    return make_pool(states[:3], states[3])


def chosen(landscape: Landscape, candidates: dict[str, Mix] | None = None, **options: Any) -> Chosen:
    objective: Any = landscape
    columns = candidates or ingredients_of(landscape.pool)
    return manifold.choose(objective, columns, seed=0, options=manifold.Options(**options))


def per_tensor(landscape: Landscape, rows: Rows) -> Mix:
    groups = make_groups("tensor", landscape.pool.sizes)
    return Mix(groups, landscape.pool.columns, rows)


def expanded(pool: Pool, values: Rows) -> Rows:
    """``[4]`` values by component to ``[n_mixed, 1]``."""
    return np.array([[values[LIVE.index(place.name.split(".")[0])]] for place in pool.mixed])


def by_component(landscape: Landscape, seed: int) -> Landscape:
    """The same with an optimum that component-wise mixing reaches."""
    random = np.random.default_rng(seed)
    rows = np.zeros((len(LIVE), len(landscape.pool.columns)))
    rows[:, : len(landscape.pool.ingredients)] = random.dirichlet(
        np.full(len(landscape.pool.ingredients), 3.0), size=len(LIVE)
    )
    landscape.optimum = np.array([rows[LIVE.index(place.name.split(".")[0])] for place in landscape.pool.mixed])
    return landscape


class Stub:
    """An optimizer that tries a few random points in the box; what it was asked is kept."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.asked: list[tuple[Rows, tuple[float, float], int]] = []

    def __call__(
        self, score: Score, metric: Metric, start: Rows, bounds: tuple[float, float], budget: int
    ) -> tuple[Rows, float]:
        self.asked.append((start.copy(), bounds, budget))
        points = self.random.uniform(*bounds, size=(3, len(start)))
        values = [score(point) for point in points]
        best = int(np.argmax(values) if metric.direction == "maximize" else np.argmin(values))
        return points[best], values[best]


def naive(landscape: Landscape, seed: int, tolerance: float, spread: float, passes: int) -> dict[str, Any]:
    """Steps 1 to 4 as the paper has them, on rows per tensor."""
    random = np.random.default_rng(seed)
    maximize = landscape.metric.direction == "maximize"
    rows = {name: tensor_rows(mix, landscape.pool) for name, mix in ingredients_of(landscape.pool).items()}

    def value(fused: Rows) -> float:
        return landscape.value(per_tensor(landscape, fused))

    order = sorted(rows, key=lambda name: -value(rows[name]) if maximize else value(rows[name]))
    members, a = [order[0]], rows[order[0]]
    acc = value(a)
    skipped, near, lambdas, run, starts = [], [], [], 0, []
    for name in order[1:]:
        c, k = rows[name], len(members)

        def fuse(point: Rows, a: Rows = a, c: Rows = c) -> Rows:
            share = expanded(landscape.pool, point)
            return share * a + (1 - share) * c

        def search(start: Rows, low: float, high: float, fuse: Callable[[Rows], Rows] = fuse) -> tuple[Rows, float]:
            starts.append((start, low, high))
            points = random.uniform(low, high, size=(3, len(LIVE)))
            values = [value(fuse(point)) for point in points]
            pick = values.index(max(values) if maximize else min(values))
            return points[pick], values[pick]

        mean = k / (k + 1) * a + 1 / (k + 1) * c
        if value(mean) < tolerance * acc if maximize else value(mean) > acc / tolerance:
            skipped.append(name)
            continue
        begin = np.full(len(LIVE), k / (k + 1))
        delta = spread * (1 - k / (k + 1))
        best, found = search(begin, k / (k + 1) - delta, k / (k + 1) + delta)
        run += 1
        if found < acc if maximize else found > acc:
            near.append(name)
            continue
        if passes >= 2:
            first = found
            best, found = search(np.clip(best, 0.3, 1.0), 0.3, 1.0)
            run += 1
            gain = 1 + 0.3 * (1 - tolerance)
            if passes >= 3 and (found >= gain * first if maximize else found <= first / gain):
                best, found = search(np.clip(best, 0.3, 1.0), 0.3, 1.0)
                run += 1
        members.append(name)
        lambdas.append(best)
        a, acc = fuse(best), found
    return {
        "ingredients": members,
        "skipped": skipped,
        "near_misses": near,
        "lambdas": lambdas,
        "passes_run": run,
        "value": acc,
        "starts": starts,
        "rows": a,
    }


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize(
    ("tolerance", "spread", "passes", "wanted"),
    [
        (0.998, 0.5, 3, {"accepted", "skipped", "third", "no third"}),
        (0.7, 0.9, 3, {"accepted", "near", "no third"}),
        (0.9, 0.2, 2, {"accepted", "skipped", "near"}),
        (1, 1, 1, {"accepted", "skipped", "near"}),
    ],
)
def test_decisions_are_those_of_the_papers_steps(
    metric: str,
    tolerance: float,
    spread: float,
    passes: int,
    wanted: set[str],
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, bool] = {}
    for seed in range(40):
        landscape = Landscape(pool, seed, metric)
        stub = Stub(seed)
        monkeypatch.setattr(manifold, "optimise", stub)
        choice = chosen(landscape, tolerance=tolerance, spread=spread, passes=passes, budget=7)
        expected = naive(landscape, seed, tolerance, spread, passes)
        for note in ("ingredients", "skipped", "near_misses", "passes_run"):
            assert choice.notes[note] == expected[note], (seed, note)
        assert choice.notes["value"] == pytest.approx(expected["value"], abs=1e-12)
        assert np.array(choice.notes["lambdas"]) == pytest.approx(np.array(expected["lambdas"]), abs=1e-12)
        assert tensor_rows(choice.mix, pool) == pytest.approx(expected["rows"], abs=1e-12)
        assert [step["name"] for step in choice.curves["manifold"]] == expected["ingredients"]
        for (start, bounds, budget), (begin, low, high) in zip(stub.asked, expected["starts"], strict=True):
            assert start == pytest.approx(begin, abs=1e-12)
            assert bounds == pytest.approx((low, high), abs=1e-12)
            assert budget == 7 * len(LIVE)
        accepted = [step["passes"] for step in choice.curves["manifold"][1:]]
        kinds = {
            "accepted": accepted,
            "skipped": expected["skipped"],
            "near": expected["near_misses"],
            "third": 3 in accepted,
            "no third": 2 in accepted,
        }
        seen |= {kind: True for kind, found in kinds.items() if found}
    assert wanted <= set(seen), "the seeds show every kind of decision"


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_it_finds_an_optimum_that_component_wise_mixing_reaches(metric: str, tmp_path: Path) -> None:
    pool = random_pool(tmp_path, ingredients=2)
    for seed in range(3):
        landscape = Landscape(pool, seed, metric)
        share = expanded(pool, np.random.default_rng(seed).uniform(0.35, 0.95, len(LIVE)))
        landscape.optimum = np.hstack([share, 1 - share, np.zeros_like(share)])
        columns = ingredients_of(pool)
        best = min(landscape.distance(mix) for mix in columns.values())
        uniform = landscape.distance(combine(list(columns.values()), [0.5, 0.5]))
        choice = chosen(landscape, tolerance=0.5)
        assert landscape.distance(choice.mix) < 1e-3 * min(best, uniform), seed
        assert choice.notes["value"] == landscape.value(choice.mix)


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_it_comes_near_the_best_that_can_be_had_step_by_step(metric: str, pool: Pool) -> None:
    """Each step on this landscape has a best coefficient per component in closed form."""
    for seed in range(2):
        landscape = by_component(Landscape(pool, seed, metric), seed)
        columns = ingredients_of(pool)
        choice = chosen(landscape, tolerance=1e-6, budget=20)
        names = choice.notes["ingredients"]
        assert len(names) >= 3
        fused = tensor_rows(columns[names[0]], pool)
        for name in names[1:]:
            other = tensor_rows(columns[name], pool)
            apart = np.sum((fused - other) ** 2, axis=1, keepdims=True)
            share = np.sum((landscape.optimum - other) * (fused - other), axis=1, keepdims=True) / apart
            fused = other + np.clip(share, 0.3, 1) * (fused - other)
        reachable = landscape.distance(per_tensor(landscape, fused))
        individuals = [landscape.distance(mix) for mix in columns.values()]
        uniform = landscape.distance(combine(list(columns.values()), [0.2] * 5))
        found = landscape.distance(choice.mix)
        assert found == pytest.approx(reachable, abs=5e-3), seed
        assert found < 0.5 * uniform, seed
        assert found < 0.1 * min(individuals), seed


def test_the_coefficients_reproduce_fusing_the_weights_one_after_another(pool: Pool) -> None:
    landscape = Landscape(pool, seed=3)
    choice = chosen(landscape, tolerance=0.6, budget=5)
    names, lambdas = choice.notes["ingredients"], np.array(choice.notes["lambdas"])
    assert len(names) >= 4
    assert choice.notes["components"] == LIVE
    weights = pool.stack.double().numpy()

    def state(name: str) -> dict[str, Rows]:
        row = weights[pool.columns.index(name)]
        return {place.name: row[place.start : place.stop] for place in pool.mixed}

    fused = state(names[0])
    for name, row in zip(names[1:], lambdas, strict=True):
        share = {tensor: row[LIVE.index(tensor.split(".")[0])] for tensor in fused}
        other = state(name)
        fused = {tensor: share[tensor] * fused[tensor] + (1 - share[tensor]) * other[tensor] for tensor in fused}
    rows = tensor_rows(choice.mix, pool)
    coefficients = np.array(choice.notes["coefficients"])
    assert coefficients.sum(axis=0) == pytest.approx(np.ones(len(LIVE)))
    for number, place in enumerate(pool.mixed):
        mixed = rows[number] @ weights[:, place.start : place.stop]
        assert mixed == pytest.approx(fused[place.name], abs=1e-6)
        component = LIVE.index(place.name.split(".")[0])
        unrolled = sum(coefficients[j, component] * state(name)[place.name] for j, name in enumerate(names))
        assert unrolled == pytest.approx(fused[place.name], abs=1e-6)


def test_unrolling_equals_the_papers_formula() -> None:
    lambdas = np.random.default_rng(0).uniform(0.3, 1, (4, 3))
    found = manifold.unroll(lambdas)
    for j in range(5):
        for i in range(3):
            product = 1.0
            for later in range(j, 4):
                product *= lambdas[later, i]
            assert found[j, i] == pytest.approx(product * (1 if j == 0 else 1 - lambdas[j - 1, i]))
    assert manifold.unroll(np.zeros((0, 2))).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_the_budget_is_kept_exactly(passes: int, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    landscape = Landscape(pool, seed=1)
    spent: list[tuple[int, int]] = []
    real = manifold.optimise

    def counting(score: Score, metric: Metric, start: Rows, bounds: tuple[float, float], budget: int) -> Any:
        before = len(landscape.asked)
        found = real(score, metric, start, bounds, budget)
        spent.append((len(set(landscape.asked[before:])), budget))
        return found

    monkeypatch.setattr(manifold, "optimise", counting)
    choice = chosen(landscape, budget=6, passes=passes, tolerance=0.8)
    assert spent == [(6 * len(LIVE), 6 * len(LIVE))] * choice.notes["passes_run"]
    assert choice.notes["evaluations_per_pass"] == 6 * len(LIVE)
    if passes == 1:  # the screen is the first point of the pass
        screened_out = len(choice.notes["skipped"])
        assert screened_out < 4
        assert len(set(landscape.asked)) == 5 + screened_out + 6 * len(LIVE) * (4 - screened_out)


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("mixes", [1, 5, 6, 7, 12, 30, 61])
def test_it_can_be_cut_off_after_so_many_images(metric: str, mixes: int, pool: Pool) -> None:
    landscape = Landscape(pool, metric=metric)
    choice = chosen(landscape, images=mixes * landscape.samples, tolerance=0.5, budget=4, phase2=True)
    # The columns themselves are always scored.
    assert landscape.tally.evaluations <= max(mixes, len(pool.ingredients))
    assert choice.notes["cut_short"]
    assert choice.notes["value"] == landscape.value(choice.mix)
    singles = [landscape.value(mix) for mix in ingredients_of(pool).values()]
    best = max(singles) if metric == "accuracy" else min(singles)
    assert landscape.metric.at_least(choice.notes["value"], best)


def test_a_cut_that_is_not_reached_changes_nothing(pool: Pool) -> None:
    free, capped = chosen(Landscape(pool), budget=4), chosen(Landscape(pool), budget=4, images=10**6)
    assert capped.mix == free.mix
    assert capped.notes == free.notes | {"cut_short": False}


def test_two_runs_ask_the_same_mixes(pool: Pool) -> None:
    first, second = Landscape(pool, seed=4), Landscape(pool, seed=4)
    one = chosen(first, budget=8, tolerance=0.8, phase2=True)
    two = chosen(second, budget=8, tolerance=0.8, phase2=True)
    assert first.asked == second.asked
    assert one == two
    assert json.loads(json.dumps([one.notes, one.curves])) == [one.notes, one.curves]


def test_the_order_of_the_columns_does_not_matter(pool: Pool) -> None:
    columns = ingredients_of(pool)
    backwards = dict(reversed(list(columns.items())))
    assert chosen(Landscape(pool), columns, budget=5).mix == chosen(Landscape(pool), backwards, budget=5).mix


class Offset(Landscape):
    """1 at the optimum, for either direction."""

    def value(self, mix: Mix) -> float:
        return 1 + (self.distance(mix) if self.metric.direction == "minimize" else -self.distance(mix))


@pytest.mark.parametrize(("metric", "edge"), [("accuracy", 0.5), ("nll", 1 / 1.5)])
def test_the_screen_decides_before_anything_is_spent(metric: str, edge: float, tmp_path: Path) -> None:
    """The soup scores 1, the average with the other 0.5 for accuracy and 1.5 for nll."""
    pool = random_pool(tmp_path, ingredients=2)
    landscape = Offset(pool, 0, metric)
    landscape.optimum = np.tile([1.0, 0, 0], (len(pool.mixed), 1))
    kept = chosen(landscape, budget=3, tolerance=edge - 1e-9)
    assert (kept.notes["skipped"], kept.notes["near_misses"]) == ([], ["step_200"])
    landscape.asked.clear()
    left = chosen(landscape, budget=3, tolerance=edge + 1e-9)
    assert (left.notes["skipped"], left.notes["near_misses"]) == (["step_200"], [])
    assert len(landscape.asked) == 3
    assert left.mix == ingredients_of(pool)["step_100"]


def test_dead_components_are_not_optimised(shared: Pool) -> None:
    landscape = Landscape(shared, seed=2)
    choice = chosen(landscape, budget=4, tolerance=0.5)
    notes = choice.notes
    assert notes["components"] == ["stem", "blocks", "scale"]
    assert sorted(notes["dead"]) == ["frozen", "head", "steps"]
    assert notes["evaluations_per_pass"] == 4 * 3
    assert notes["passes_run"] >= 2
    assert notes["saved_evaluations"] == 4 * 3 * notes["passes_run"]
    head = [place.name for place in shared.mixed].index("head.weight")
    first = tensor_rows(ingredients_of(shared)[notes["ingredients"][0]], shared)
    assert np.array_equal(tensor_rows(choice.mix, shared)[head], first[head])


def test_the_second_phase_leaves_dead_components_alone(shared: Pool) -> None:
    choice = chosen(Landscape(shared, seed=2), budget=2, tolerance=0.5, phase2=True)
    assert choice.notes["phase2"]["kept"]
    head = [place.name for place in shared.mixed].index("head.weight")
    first = tensor_rows(ingredients_of(shared)[choice.notes["ingredients"][0]], shared)
    assert np.array_equal(tensor_rows(choice.mix, shared)[head], first[head])


def test_a_component_lives_where_the_columns_use_a_checkpoint_that_differs(shared: Pool) -> None:
    columns = ingredients_of(shared)
    base = one_hot(whole(shared), shared.columns, "base")
    halfway = combine([columns["model_0"], base], [0.5, 0.5])
    choice = chosen(Landscape(shared), {**columns, "halfway": halfway}, budget=2)
    assert sorted(choice.notes["dead"]) == ["frozen", "steps"]
    assert "head" in choice.notes["components"]
    same = chosen(Landscape(shared), {"one": halfway, "two": halfway}, budget=2)
    assert same.notes["components"] == []
    assert same.mix == halfway


def test_columns_may_be_mixes_with_other_groups(pool: Pool) -> None:
    columns = {
        "tensors": random_mix(make_groups("tensor", pool.sizes), pool.columns, seed=1),
        "blocks": random_mix(make_groups("block", pool.sizes), pool.columns, seed=2),
        "segments": random_mix(make_groups(2, pool.sizes), pool.columns, seed=3),
    }
    landscape = Landscape(pool, seed=1)
    choice = chosen(landscape, columns, tolerance=0.3, budget=6)
    names, coefficients = choice.notes["ingredients"], np.array(choice.notes["coefficients"])
    assert len(names) >= 2
    assert sorted(choice.notes["components"]) == sorted(LIVE)
    expected = sum(
        expanded(pool, coefficients[number]) * tensor_rows(columns[name], pool) for number, name in enumerate(names)
    )
    assert tensor_rows(choice.mix, pool) == pytest.approx(expected, abs=1e-12)
    assert landscape.value(choice.mix) == pytest.approx(choice.notes["value"], abs=1e-12)


def test_one_column_comes_back_as_it_is(pool: Pool) -> None:
    only = random_mix(make_groups("block", pool.sizes), pool.columns)
    choice = chosen(Landscape(pool), {"only": only}, phase2=True)
    assert choice.mix == only
    assert choice.notes["lambdas"] == []
    assert choice.notes["ingredients"] == ["only"]
    assert choice.notes["passes_run"] == 0


def test_components_by_prefix_or_by_scheme(pool: Pool, tmp_path: Path) -> None:
    def components(**options: Any) -> list[str]:
        found: list[str] = chosen(Landscape(pool), budget=1, models=2, **options).notes["components"]
        return found

    assert components(prefix=2) == ["stem.weight", "blocks.0", "blocks.1", "head.weight", "scale"]
    assert sorted(components(prefix=9)) == sorted(pool.sizes)
    assert components(groups="whole") == ["whole"]
    assert components(groups="3", prefix=2) == ["depth.0", "depth.1", "depth.2"]
    (tmp_path / "groups.toml").write_text('[groups]\nweights = "weight$"\nrest = ["bias$", "^scale$"]\n')
    assert sorted(components(groups=str(tmp_path / "groups.toml"))) == ["rest", "weights"]


def test_only_the_best_are_inspected(pool: Pool) -> None:
    landscape = Landscape(pool, seed=1)
    values = {name: landscape.value(mix) for name, mix in ingredients_of(pool).items()}
    best = sorted(values, key=lambda name: -values[name])[:3]
    notes = chosen(landscape, budget=2, models=3).notes
    assert sorted(notes["ingredients"] + notes["skipped"] + notes["near_misses"]) == sorted(best)


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
def test_the_second_phase_scales_all_coefficients_together(metric: str, pool: Pool) -> None:
    for seed in range(4):
        landscape = Landscape(pool, seed, metric)
        first = chosen(landscape, budget=2, tolerance=0.7)
        landscape.asked.clear()
        choice = chosen(landscape, budget=2, tolerance=0.7, phase2=True)
        names, joint = choice.notes["ingredients"], choice.notes["phase2"]
        assert joint["kept"]
        assert METRICS[metric].better(choice.notes["value"], first.notes["value"])
        assert choice.notes["value"] == joint["value"] == landscape.value(choice.mix)
        factors = np.array(joint["factors"])
        assert np.all((factors >= 0.75) & (factors <= 1.25))
        weights = factors * np.array(first.notes["coefficients"])
        weights /= weights.sum(axis=0)
        assert np.array(choice.notes["coefficients"]) == pytest.approx(weights, abs=1e-12)
        columns = ingredients_of(pool)
        expected = sum(
            expanded(pool, weights[number]) * tensor_rows(columns[name], pool) for number, name in enumerate(names)
        )
        assert tensor_rows(choice.mix, pool) == pytest.approx(expected, abs=1e-12)
        dead, members = len(choice.notes["dead"]), len(names)
        assert choice.notes["saved_evaluations"] == 2 * dead * (choice.notes["passes_run"] + members)


def test_the_second_phase_has_its_own_budget_and_is_dropped_where_it_is_worse(
    shared: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    landscape = Landscape(shared, seed=2)
    first = chosen(landscape, budget=4, tolerance=0.5)
    before: list[int] = []
    real = manifold.optimise

    def spoilt(score: Score, metric: Metric, start: Rows, bounds: tuple[float, float], budget: int) -> Any:
        if bounds != manifold.FACTOR_BOUNDS:
            return real(score, metric, start, bounds, budget)
        before.append(budget)
        assert start.tolist() == [1.0] * len(start)
        uneven = start + 0.25 * np.where(np.arange(len(start)) < len(start) // 2, 1, -1)
        worst = min(uneven, 2 - uneven, key=score)
        return worst, score(worst)

    monkeypatch.setattr(manifold, "optimise", spoilt)
    choice = chosen(landscape, budget=4, tolerance=0.5, phase2=True)
    assert before == [4 * 3 * len(first.notes["ingredients"])]
    assert not choice.notes["phase2"]["kept"]
    assert choice.mix == first.mix
    assert choice.notes["coefficients"] == first.notes["coefficients"]
    assert choice.notes["value"] == first.notes["value"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": 0}, "prefix: expected 1 or more name tokens, found 0"),
        ({"budget": 0}, "budget: expected 1 or more .* found 0"),
        ({"tolerance": 0.0}, "tolerance: expected a number above 0 and up to 1, found 0"),
        ({"tolerance": 1.1}, "tolerance: .* found 1.1"),
        ({"tolerance": float("nan")}, "tolerance: .* found nan"),
        ({"spread": 0.0}, "spread: .* found 0"),
        ({"spread": 1.5}, "spread: .* found 1.5"),
        ({"passes": 4}, "passes: expected 1, 2 or 3, found 4"),
        ({"models": 0}, "models: expected 1 or more columns, found 0"),
        ({"images": 0}, "images: expected 1 or more images, found 0"),
        ({"groups": "blocks"}, "groups: unknown group scheme 'blocks'; did you mean 'block'"),
        ({"groups": "99"}, "groups 99: expected a number from 1 to 7"),
        ({"passes": 0, "budget": -1}, r"manifold, 2 problems:\n  - budget.*\n  - passes"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str, pool: Pool) -> None:
    landscape = Landscape(pool)
    with pytest.raises(SpecError, match=message):
        chosen(landscape, **options)
    assert not landscape.asked
