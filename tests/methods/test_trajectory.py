from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt import Mix, SpecError
from mixopt.methods import trajectory
from mixopt.values.groups import make_groups
from mixopt.weights.pool import Pool
from tests.conftest import random_mix
from tests.methods.landscape import STEPS, Landscape, ingredients_of, random_pool
from tests.methods.reference import State, fused, same, state_of

SHUFFLED = ("step_300", "step_100", "step_500", "step_200", "step_400")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("trajectory"), base=False)


def shuffled(pool: Pool) -> dict[str, Mix]:
    return {name: ingredients_of(pool)[name] for name in SHUFFLED}


def swa(states: list[State], count: int) -> State:
    """The running mean of SWA over the last checkpoints."""
    mean = states[-count]
    for number, state in enumerate(states[len(states) - count + 1 :], start=1):
        mean = {name: (mean[name] * number + state[name]) / (number + 1) for name in mean}
    return mean


def ema(states: list[State], decay: float) -> State:
    """The recurrence on weights."""
    average = states[0]
    for state in states[1:]:
        average = {name: decay * average[name] + (1 - decay) * state[name] for name in average}
    return average


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("form", ["uniform", "ema"])
def test_the_average_is_the_papers_on_weights_and_the_best_is_chosen(form: Any, metric: str, pool: Pool) -> None:
    states = [state_of(pool, name) for name in STEPS]
    axis = "last" if form == "uniform" else "decay"
    grid = [1, 2, 3, 4, 5] if form == "uniform" else [0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
    pick = max if metric == "accuracy" else min
    seen = set()
    for seed in range(40):
        landscape: Any = Landscape(pool, seed, metric)
        choice = trajectory.choose(landscape, shuffled(pool), seed=0, form=form)
        found = choice.notes[axis]
        expected = swa(states, found) if form == "uniform" else ema(states, found)
        assert same(fused(choice.mix, pool), expected)
        curve = choice.curves[axis]
        assert [point["x"] for point in curve] == grid
        assert pick(curve, key=lambda point: point["value"])["x"] == found
        assert landscape.value(choice.mix) == pick(point["value"] for point in curve)
        assert choice.notes == {axis: found, "form": form, "order": list(STEPS)}
        assert len(landscape.asked) == len(grid)
        seen.add(found)
    assert len(seen) >= 3


@pytest.mark.parametrize("last", [1, 2, 5])
def test_a_given_k_costs_nothing(last: int, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    choice = trajectory.choose(landscape, shuffled(pool), seed=0, last=last)
    assert not landscape.asked
    assert not choice.curves
    assert choice.notes["last"] == last
    expected = [0.0] * (5 - last) + [1 / last] * last
    assert choice.mix.coefficients[0].tolist() == pytest.approx(expected)
    assert np.count_nonzero(choice.mix.coefficients) == last


def test_decay_0_is_the_last_checkpoint_bit_for_bit(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    choice = trajectory.choose(landscape, shuffled(pool), seed=0, form="ema", decays=(0.0,))
    assert choice.mix.coefficients.tobytes() == np.array([[0.0, 0.0, 0.0, 0.0, 1.0]]).tobytes()


def test_of_equals_the_smallest_k(pool: Pool) -> None:
    ties = 0
    for seed in range(40):
        landscape: Any = Landscape(pool, seed, levels=8)
        choice = trajectory.choose(landscape, shuffled(pool), seed=0)
        values = [point["value"] for point in choice.curves["last"]]
        assert choice.notes["last"] == 1 + int(np.argmax(values))
        ties += values.count(max(values)) > 1
    assert ties > 3


def test_the_last_number_of_a_name_tells_the_order() -> None:
    names = ["run2_step_900", "run1_step_1000", "epoch7", "v3.ckpt-0080.ema"]
    assert trajectory.in_order(names) == ["epoch7", "v3.ckpt-0080.ema", "run2_step_900", "run1_step_1000"]


def test_checkpoints_may_be_mixes_with_groups_of_their_own(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    first = ingredients_of(pool)["step_100"]
    second = random_mix(make_groups("tensor", pool.sizes), pool.columns, seed=2)
    columns = {"part_2": second, "part_1": first}
    states = [fused(first, pool), fused(second, pool)]
    assert same(fused(trajectory.choose(landscape, columns, seed=0, last=2).mix, pool), swa(states, 2))
    choice = trajectory.choose(landscape, columns, seed=0, form="ema", decays=(0.9,))
    assert same(fused(choice.mix, pool), ema(states, 0.9))


def test_equal_checkpoints_give_the_same_model_back(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    one = ingredients_of(pool)["step_200"]
    for options in ({}, {"last": 3}, {"form": "ema"}):
        columns = {f"step_{number}": one for number in range(3)}
        choice = trajectory.choose(landscape, columns, seed=0, **options)
        assert choice.mix.coefficients == pytest.approx(one.coefficients, abs=1e-12)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (("step_1", "final", "best"), "such as step_1000: no number in final, best"),
        (("a_7", "b_07", "c_8"), "such as step_1000: a_7, b_07 have the same number, 7"),
        (("step_1",), "two or more checkpoints, found step_1"),
        (("step_1", "a_1", "final"), r"step_1000, 2 problems:\n.*same number, 1\n.*no number in final"),
    ],
)
def test_names_that_tell_no_order_are_refused(found: tuple[str, ...], message: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    columns = dict(zip(found, ingredients_of(pool).values(), strict=False))
    with pytest.raises(SpecError, match=message):
        trajectory.choose(landscape, columns, seed=0)
    assert not landscape.asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 0}, "last: expected a number from 1 to 5, the checkpoints, found 0"),
        ({"last": 6}, "last: .* found 6"),
        ({"form": "ema", "last": 2}, "last: expected with form=uniform only"),
        ({"decays": (0.1,)}, "decays: expected with form=ema only"),
        ({"form": "ema", "decays": (0.5, 1.0)}, "decays: expected values from 0 to below 1, found 0.5, 1.0"),
        ({"form": "ema", "decays": (-0.5,)}, "decays: .* found -0.5"),
        ({"form": "ema", "decays": ()}, "decays: .* found none"),
    ],
)
def test_wrong_options_are_told_before_anything_is_scored(options: Any, message: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(SpecError, match=message):
        trajectory.choose(landscape, shuffled(pool), seed=0, **options)
    assert not landscape.asked


def test_the_base_is_not_part_of_the_run(tmp_path: Path) -> None:
    pool = random_pool(tmp_path)
    landscape: Any = Landscape(pool)
    mix = trajectory.choose(landscape, ingredients_of(pool), seed=0, last=5).mix
    assert mix.coefficients[0, pool.columns.index("base")] == 0
