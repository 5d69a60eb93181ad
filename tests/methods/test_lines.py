from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mixopt import Mix, PoolError, SpecError
from mixopt.methods import individual, lines
from mixopt.values.groups import make_groups
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool, open_pool
from tests.conftest import random_mix
from tests.methods.landscape import Landscape, ingredients_of, random_pool
from tests.methods.reference import TENTHS, State, fused, same, state_of

CLIP = (
    *("positional_embedding", "text_projection", "logit_scale", "token_embedding.weight", "ln_final.weight"),
    *("visual.conv1.weight", "visual.ln_pre.weight", "visual.ln_post.weight", "visual.proj"),
    *(f"visual.transformer.resblocks.{number}.{part}" for number in (0, 1, 2, 10, 3) for part in ("a.weight", "b")),
    *(f"transformer.resblocks.{number}.a.weight" for number in range(3)),
)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("lines"))


def named_pool(folder: Path, tensors: tuple[str, ...], frozen: tuple[str, ...] = ()) -> Pool:
    """A pool of such tensors; the frozen ones are the same in all columns."""
    torch.manual_seed(0)
    same_in_all = {name: torch.randn(3) for name in frozen}
    paths = {name: folder / f"{name}.safetensors" for name in ("one", "two", "base")}
    for path in paths.values():
        save_file({name: same_in_all.get(name, torch.randn(3)) for name in tensors}, path)
    return open_pool({name: paths[name] for name in ("one", "two")}, ("base", paths["base"]))


def authors(base: State, tuned: State, alpha: float, beta: float, blocks: int) -> State:
    """The authors' rule, from its description: by the number between dots in a name, and alpha elsewhere."""
    result = {}
    for name, start in base.items():
        weight = alpha
        for number in range(blocks):
            if f".{number}." in name:
                weight = alpha + beta * number / (blocks - 1)
        result[name] = start + weight * (tuned[name] - start)
    return result


@pytest.mark.parametrize("metric", ["accuracy", "nll"])
@pytest.mark.parametrize("beta", [None, 0.0, 0.3, 1.0])
def test_the_mix_is_the_authors_rule_on_weights(metric: str, beta: float | None, pool: Pool) -> None:
    seen = set()
    for seed in range(20):
        landscape: Any = Landscape(pool, seed, metric)
        choice = lines.choose(landscape, ingredients_of(pool), seed=0, beta=beta)
        alone: Any = Landscape(pool, seed, metric)
        assert choice.notes["column"] == individual.choose(alone, ingredients_of(pool), seed=0).notes["best"]
        alpha, used = choice.notes["alpha"], choice.notes["beta"]
        assert used == (1 - alpha if beta is None else beta)
        assert choice.notes["layers"] == {"blocks": 2}
        expected = authors(state_of(pool, "base"), state_of(pool, choice.notes["column"]), alpha, used, 2)
        assert same(fused(choice.mix, pool), expected)
        curve = choice.curves["alpha"]
        assert [point["x"] for point in curve] == TENTHS
        pick = max if metric == "accuracy" else min
        assert pick(curve, key=lambda point: point["value"])["x"] == alpha
        assert landscape.value(choice.mix) == pick(point["value"] for point in curve)
        assert not choice.sweep
        seen.add(alpha)
    assert len(seen) > 1


def test_alpha_1_is_the_column_and_the_last_block_always_is(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    column = ingredients_of(pool)["step_200"]
    whole = lines.choose(landscape, {"one": column}, seed=0, alphas=(1.0,)).mix
    assert tensor_rows(whole, pool).tobytes() == tensor_rows(column, pool).tobytes()
    places = [place.name for place in pool.mixed]
    for alpha in TENTHS:
        rows = tensor_rows(lines.choose(landscape, {"one": column}, seed=0, alphas=(alpha,)).mix, pool)
        assert rows[places.index("blocks.1.mlp.weight"), pool.columns.index("step_200")] == 1
        assert rows[places.index("blocks.1.mlp.weight"), -1] == 0
        assert rows[places.index("head.weight"), pool.columns.index("step_200")] == alpha
        assert not np.any(np.signbit(rows))


def test_beyond_the_column_where_alpha_and_beta_add_up_to_more(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    column = ingredients_of(pool)["step_200"]
    mix = lines.choose(landscape, {"one": column}, seed=0, alphas=(0.5,), beta=1.0).mix
    expected = authors(state_of(pool, "base"), state_of(pool, "step_200"), 0.5, 1.0, 2)
    assert same(fused(mix, pool), expected)
    assert not np.any(np.signbit(mix.coefficients) & (mix.coefficients == 0))


def weights_of(pool: Pool, alpha: float) -> dict[str, float]:
    """Tensor name to the weight that the column gets in it."""
    landscape: Any = Landscape(pool)
    mix = lines.choose(landscape, {"one": ingredients_of(pool)["one"]}, seed=0, alphas=(alpha,)).mix
    rows = tensor_rows(mix, pool)
    assert rows[:, pool.columns.index("two")].tolist() == [0] * len(rows)
    return {place.name: row[0] for place, row in zip(pool.mixed, rows, strict=True)}


@pytest.mark.parametrize("frozen", ["", "transformer", "visual.transformer.resblocks.10", "loose"])
def test_towers_are_numbered_on_their_own_and_frozen_blocks_count(frozen: str, tmp_path: Path) -> None:
    """Blocks 0, 1, 2, 3 and 10 in one tower, in no order in the file, and 0 to 2 in the other."""
    loose = tuple(name for name in CLIP if "resblocks" not in name)
    same_in_all = loose if frozen == "loose" else tuple(name for name in CLIP if frozen and name.startswith(frozen))
    pool = named_pool(tmp_path, CLIP, same_in_all)
    places = {
        **{f"visual.transformer.resblocks.{number}": place / 4 for place, number in enumerate((0, 1, 2, 3, 10))},
        **{f"transformer.resblocks.{number}": number / 2 for number in range(3)},
    }
    for alpha in (0.0, 0.2):
        found = weights_of(pool, alpha)
        assert found.keys() == set(CLIP) - set(same_in_all)
        for name, weight in found.items():
            place = next((place for block, place in places.items() if name.startswith(f"{block}.")), 0.0)
            assert weight == pytest.approx(alpha + (1 - alpha) * place), name
    landscape: Any = Landscape(pool)
    layers = lines.choose(landscape, ingredients_of(pool), seed=0).notes["layers"]
    told = {"visual.transformer.resblocks": 5, "transformer.resblocks": 3}
    assert layers == ({"visual.transformer.resblocks": 5} if frozen == "transformer" else told)


def test_stages_whose_number_is_part_of_their_name(tmp_path: Path) -> None:
    tensors = ("conv1.weight", *(f"layer{number}.0.conv1.weight" for number in range(1, 5)), "fc.weight")
    pool = named_pool(tmp_path, tensors)
    expected = [0.4, 0.4, 0.6, 0.8, 1, 0.4]
    assert [weights_of(pool, 0.4)[name] for name in tensors] == pytest.approx(expected)


def test_a_single_block_is_the_last(tmp_path: Path) -> None:
    pool = named_pool(tmp_path, ("stem.weight", "blocks.0.weight", "head.weight"))
    found = weights_of(pool, 0.25)
    assert [found[name] for name in ("stem.weight", "blocks.0.weight", "head.weight")] == [0.25, 1, 0.25]


def test_a_network_without_numbered_blocks_is_refused(tmp_path: Path) -> None:
    pool = named_pool(tmp_path, ("first.weight", "second.weight"))
    landscape: Any = Landscape(pool)
    with pytest.raises(
        SpecError, match=r"lines: expected .* numbered blocks, .* found only first.weight, second.*wise"
    ):
        lines.choose(landscape, ingredients_of(pool), seed=0)
    assert not landscape.asked


def test_columns_may_be_soups_with_groups_of_their_own(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    soup: Mix = random_mix(make_groups("tensor", pool.sizes), pool.columns, seed=1)
    mix = lines.choose(landscape, {"soup": soup}, seed=0, alphas=(0.5,)).mix
    assert same(fused(mix, pool), authors(state_of(pool, "base"), fused(soup, pool), 0.5, 0.5, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": (0.5, 1.5)}, "alphas: expected values from 0 to 1, found 1.5"),
        ({"alphas": ()}, "alphas: .* found none"),
        ({"beta": -0.5}, "beta: expected values from 0 to 1, found -0.5"),
    ],
)
def test_wrong_options_are_told_before_anything_is_scored(options: Any, message: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(SpecError, match=message):
        lines.choose(landscape, ingredients_of(pool), seed=0, **options)
    assert not landscape.asked


def test_a_pool_without_a_base_is_refused(tmp_path: Path) -> None:
    pool = random_pool(tmp_path, base=False)
    landscape: Any = Landscape(pool)
    with pytest.raises(PoolError, match="it needs the base"):
        lines.choose(landscape, ingredients_of(pool), seed=0)
