"""MonoSoup: the paper's edit of the spectrum written out with a whole decomposition; the row keeps its length."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mixopt import Mix, PoolError, SpecError, combine, one_hot
from mixopt.methods import Chosen, mono
from mixopt.methods.mono import shrink, spectrum
from mixopt.values.groups import make_groups
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool
from tests.conftest import State, random_mix, random_states
from tests.methods.landscape import Landscape, ingredients_of
from tests.methods.reference import fused, state_of

MakePool = Callable[..., Pool]
By = Literal["rank", "energy"]
Array = NDArray[np.float64]


def papers(delta: Array, by: By, share: float = 0.8) -> Array:
    """The paper's new delta of one tensor: the first n directions and the others, each with a factor."""
    if delta.ndim < 2 or not delta.any():
        return delta
    u, s, vt = np.linalg.svd(delta.reshape(len(delta), -1), full_matrices=False)
    n = 1
    if by == "rank":
        p = s / s.sum()
        n = math.ceil(math.exp(-sum(each * math.log(each) for each in p if each > 0)))
    while by == "energy" and sum(s[:n] ** 2) < share * sum(s**2):
        n += 1
    n = min(n, len(s))
    first, others = (u[:, :n] * s[:n]) @ vt[:n], (u[:, n:] * s[n:]) @ vt[n:]
    rho = (s[n] / s[0]) ** 2 if n < len(s) else 0.0
    low = rho + (1 - rho) * math.sqrt(max(0.0, 1 - sum(s[:n] ** 2) / sum(s**2)))
    new: Array = ((1 - low) * first + low * others).reshape(delta.shape)
    return new


def choose(pool: Pool, columns: dict[str, Mix] | None = None, seed: int = 0, **options: Any) -> Chosen:
    landscape: Any = Landscape(pool, seed)
    columns = columns or ingredients_of(pool)
    choice = mono.choose(landscape, columns, seed=0, **options)
    assert len(set(landscape.asked)) == (len(columns) if len(columns) > 1 else 0)
    json.dumps([choice.curves, choice.notes], allow_nan=False)
    return choice


def factors(choice: Chosen) -> dict[str, float]:
    return {point["name"]: point["value"] for point in choice.curves["factor"]}


def directions(choice: Chosen) -> dict[str, int | None]:
    return {point["name"]: point["directions"] for point in choice.curves["factor"]}


def layouts(base: State, seed: int = 1) -> State:
    """Tensors of every layout beside others: kernels, one row, a wide and a tall matrix; few directions are large."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv": (8, 4, 3, 3), "conv1d": (9, 5, 3), "cls": (1, 1, 6), "wide": (8, 30), "tall": (30, 8)}
    more = {}
    for name, shape in shapes.items():
        matrix = torch.randn(shape, generator=generator).flatten(1)
        side = min(matrix.shape)
        size = torch.logspace(0, -1.5, side)
        more[name] = (matrix * size[:, None] if len(matrix) == side else matrix * size).reshape(shape)
    return base | more


@pytest.fixture
def pool(make_pool: MakePool) -> Pool:
    *states, base = random_states(4)
    return make_pool([layouts(state, number) for number, state in enumerate(states)], layouts(base, 9))


@pytest.mark.parametrize("by", ["rank", "energy"])
@pytest.mark.parametrize("seed", range(4))
def test_each_tensor_keeps_its_direction_and_gets_the_papers_length(by: By, seed: int, pool: Pool) -> None:
    choice = choose(pool, seed=seed, by=by)
    base, found = state_of(pool, "base"), fused(choice.mix, pool)
    own = state_of(pool, choice.notes["column"])
    shorter = 0
    for place in pool.mixed:
        delta = (own[place.name] - base[place.name]).reshape(place.shape)
        new, ours = papers(delta, by), (found[place.name] - base[place.name]).reshape(place.shape)
        factor = factors(choice)[place.name]
        assert ours == pytest.approx(factor * delta, abs=1e-6), place.name
        assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(new), rel=1e-5), place.name
        shorter += factor < 0.97
    assert shorter >= 4, "a test of factors below 1"
    assert choice.notes["by"] == by


def test_the_best_column_is_the_one_that_is_shrunk(pool: Pool) -> None:
    seen = set()
    for seed in range(10):
        landscape = Landscape(pool, seed)
        values = {name: landscape.value(mix) for name, mix in ingredients_of(pool).items()}
        best = choose(pool, seed=seed).notes["column"]
        assert values[best] == max(values.values())
        seen.add(best)
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("values", "by", "share", "n", "factor"),
    [
        # One direction is all there is: nothing is taken from it, whatever the rest of the matrix could hold.
        ([3.0], "rank", 0.8, 1, 1.0),
        ([3.0, 0.0, 0.0], "rank", 0.8, 1, 1.0),
        ([3.0, 0.0, 0.0], "energy", 1.0, 1, 1.0),
        # All alike: all directions are needed.
        ([2.0, 2.0, 2.0, 2.0], "rank", 0.8, 4, 1.0),
        # exp(H) of 2/3 and 1/3 is 1.89.
        ([2.0, 1.0], "rank", 0.8, 2, 1.0),
        # 4 of 5 is the share itself: P = 0.8, rho = 1/4, sqrt(1 - P) = 0.4472, low = 0.5854.
        ([2.0, 1.0], "energy", 0.8, 1, 0.453926),
        ([2.0, 1.0], "energy", 0.81, 2, 1.0),
        ([2.0, 1.0], "energy", 1.0, 2, 1.0),
        # exp(H) of 10/12, 1/12, 1/12 is 1.761; P = 101/102, rho = 0.01, sqrt(1 - P) = 0.0990, low = 0.1080.
        ([10.0, 1.0, 1.0], "rank", 0.8, 2, 0.887657),
    ],
)
def test_factors_worked_out_by_hand(values: list[float], by: By, share: float, n: int, factor: float) -> None:
    for scale in (1.0, 1e-30, 1e30):
        found = shrink(scale * np.array(values), by, share)
        assert found.directions == n
        assert found.factor == pytest.approx(factor, abs=1e-6)


@pytest.mark.parametrize("by", ["rank", "energy"])
@pytest.mark.parametrize("seed", range(20))
def test_nothing_grows_and_scale_and_order_of_axes_do_not_matter(by: By, seed: int) -> None:
    delta = torch.randn(7, 5, generator=torch.Generator().manual_seed(seed)) * torch.logspace(0, -seed / 5, 5)
    found = shrink(spectrum(delta), by)
    assert 0 <= found.factor <= 1
    for same in (delta.T, 64 * delta, -delta):
        other = shrink(spectrum(same), by)
        assert other.directions == found.directions
        assert other.factor == pytest.approx(found.factor, rel=1e-4)


def test_kernels_are_matrices_of_output_channels(pool: Pool) -> None:
    delta = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(3))
    assert spectrum(delta) == pytest.approx(np.linalg.svd(delta.numpy().reshape(4, 12), compute_uv=False), rel=1e-5)
    counts = directions(choose(pool))
    assert counts["conv"] in range(2, 8)
    assert counts["cls"] == 1, "one row is one direction"


def test_vectors_scalars_and_single_rows_stay_the_columns_bit_for_bit(pool: Pool) -> None:
    choice = choose(pool)
    own = tensor_rows(ingredients_of(pool)[choice.notes["column"]], pool)
    rows = tensor_rows(choice.mix, pool)
    left = ("blocks.0.mlp.bias", "blocks.1.mlp.bias", "scale", "cls")
    for place, row, before in zip(pool.mixed, rows, own, strict=True):
        assert np.array_equal(row, before) == (place.name in left or factors(choice)[place.name] == 1)
        assert factors(choice)[place.name] == 1 or place.name not in left
    assert choice.notes["left_alone"] == 3
    assert choice.notes["tensors"] == len(pool.mixed)
    sizes = pool.sizes
    mean = np.average([factors(choice)[name] for name in sizes], weights=list(sizes.values()))
    assert choice.notes["mean_factor"] == pytest.approx(mean)


def low_rank(shape: tuple[int, int], rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)


def test_deltas_of_zero_and_of_low_rank(make_pool: MakePool) -> None:
    *states, base = random_states(3)
    states[0]["stem.weight"] = base["stem.weight"].clone()
    states[0]["head.weight"] = base["head.weight"] + low_rank((4, 6), 1)
    states[0]["blocks.0.mlp.weight"] = base["blocks.0.mlp.weight"] + low_rank((6, 6), 3)
    pool = make_pool(states, base)
    choice = choose(pool, {"model_0": ingredients_of(pool)["model_0"]})
    assert directions(choice)["stem.weight"] is None
    assert factors(choice)["stem.weight"] == 1
    assert choice.notes["left_alone"] == 4
    assert factors(choice)["head.weight"] == pytest.approx(1, abs=1e-4), "one direction is kept whole"
    delta = states[0]["blocks.0.mlp.weight"] - base["blocks.0.mlp.weight"]
    expected = np.linalg.norm(papers(delta.double().numpy(), "rank")) / np.linalg.norm(delta.numpy())
    assert factors(choice)["blocks.0.mlp.weight"] == pytest.approx(expected, rel=1e-4)


def test_a_soup_is_shrunk_as_its_weights_are(pool: Pool) -> None:
    members = list(ingredients_of(pool).values())
    base = state_of(pool, "base")
    groups = make_groups("tensor", pool.sizes)
    for mix in (
        combine(members[:2], [0.3, 0.7]),
        combine([*members[:2], one_hot(make_groups("whole", pool.sizes), pool.columns, "base")], [0.9, -0.2, 0.3]),
        random_mix(groups, pool.columns, 3, affine=True),
    ):
        choice = choose(pool, {"soup": mix})
        own, found = fused(mix, pool), fused(choice.mix, pool)
        for place in pool.mixed:
            delta = (own[place.name] - base[place.name]).reshape(place.shape)
            length = np.linalg.norm(papers(delta, "rank"))
            assert np.linalg.norm(found[place.name] - base[place.name]) == pytest.approx(length, rel=1e-4)


def test_the_base_alone_stays_the_base(pool: Pool) -> None:
    base = one_hot(make_groups("whole", pool.sizes), pool.columns, "base")
    choice = choose(pool, {"base": base})
    assert np.array_equal(tensor_rows(choice.mix, pool), tensor_rows(base, pool))
    assert choice.notes["left_alone"] == len(pool.mixed)


def test_singular_values_of_one_matrix_at_a_time(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = torch.linalg.svdvals

    def watched(matrix: Tensor) -> Tensor:
        seen.append((matrix.dtype, matrix.numel(), matrix.shape[0] >= matrix.shape[1]))
        values: Tensor = real(matrix)
        return values

    monkeypatch.setattr(torch.linalg, "svdvals", watched)
    choose(pool)
    matrices = [place for place in pool.mixed if len(place.shape) > 1]
    assert seen == [(torch.float32, place.stop - place.start, True) for place in matrices]


def test_a_pool_without_base_is_refused_before_anything_is_scored(make_pool: MakePool) -> None:
    pool = make_pool(random_states(2))
    landscape: Any = Landscape(pool)
    with pytest.raises(PoolError, match="it needs the base"):
        mono.choose(landscape, ingredients_of(pool), seed=0)
    assert not landscape.asked


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 0.9}, "share: expected with by=energy only, found share=0.9"),
        ({"by": "energy", "share": 0.0}, "share: expected a number above 0 and up to 1, found 0"),
        ({"by": "energy", "share": 1.5}, "share: .* found 1.5"),
        ({"by": "energy", "share": math.nan}, "share: .* found nan"),
    ],
)
def test_wrong_options_are_told_before_anything_is_scored(options: Any, message: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(SpecError, match=message):
        mono.choose(landscape, ingredients_of(pool), seed=0, **options)
    assert not landscape.asked


def test_weights_too_far_apart_are_named(make_pool: MakePool) -> None:
    *states, base = random_states(3)
    for state, sign in ((states[0], 1), (states[1], 1), (base, -1)):
        state["head.weight"] = sign * 3e38 * torch.ones(4, 6) + (state["head.weight"] if sign < 0 else 0)
    states[1]["head.weight"][0, 0] = 0
    pool = make_pool(states, base)
    with pytest.raises(PoolError, match=r"^head.weight: expected a difference .* not finite"):
        choose(pool)
