"""Model Stock: the paper's formula written out, for checkpoints and for live runs."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixopt import Mix, PoolError, combine, one_hot
from mixopt.methods import Chosen, model_stock
from mixopt.methods.model_stock import merge, products, ratio
from mixopt.values.groups import make_groups
from mixopt.weights.builder import tensor_rows
from mixopt.weights.exact import build_exact
from mixopt.weights.pool import Pool
from tests.conftest import State, random_mix, random_states
from tests.methods.landscape import Landscape, ingredients_of

MakePool = Callable[..., Pool]
FLOATS = ("stem.weight", "blocks.0.mlp.weight", "blocks.0.mlp.bias", "head.weight", "scale")
Naive = dict[str, NDArray[np.float64]]


def near_states(count: int, seed: int = 0, spread: float = 0.7) -> tuple[list[State], State]:
    """Runs that moved from a base in one direction and each a little in its own, and the base."""
    *states, direction, base = random_states(count + 2, seed)
    for state in states:
        for name, tensor in state.items():
            if tensor.is_floating_point() and name != "frozen":
                state[name] = base[name] + direction[name] + spread * tensor
    return states, base


def naive(states: list[Naive], base: Naive) -> tuple[Naive, dict[str, float]]:
    """The paper's formula, one tensor at a time; negative ratios become 0, zero deltas give the mean."""
    fused, shares = {}, {}
    for name, origin in base.items():
        deltas = [(state[name] - origin).ravel() for state in states]
        k = len(deltas)
        t = 1.0
        if all(np.any(delta) for delta in deltas):
            cosines = [a @ b / np.sqrt(a @ a) / np.sqrt(b @ b) for a, b in combinations(deltas, 2)]
            cosine = float(np.mean(cosines))
            t = 0.0
            if cosine >= 0:
                t = 2 * cosine / (1 + cosine) if k == 2 else k * cosine / (1 + (k - 1) * cosine)
        shares[name] = t
        fused[name] = t * sum(state[name] for state in states) / k + (1 - t) * origin
    return fused, shares


def exact(state: State) -> Naive:
    return {name: tensor.double().numpy() for name, tensor in state.items() if tensor.is_floating_point()}


def built(mix: Mix, pool: Pool) -> State:
    """The weights of a mix, from the files."""
    state, _ = build_exact(mix, pool.paths, hashes=pool.fingerprints, dtypes={"*": torch.float32})
    return state


def choose(pool: Pool, columns: dict[str, Mix] | None = None, seed: int = 0) -> Chosen:
    landscape: Any = Landscape(pool)
    choice = model_stock.choose(landscape, columns or ingredients_of(pool), seed=seed)
    assert not landscape.asked, "Model Stock asks for nothing"
    json.dumps([choice.curves, choice.notes], allow_nan=False)
    return choice


def shares_of(choice: Chosen) -> dict[str, float]:
    return {point["name"]: point["value"] for point in choice.curves["ratio"]}


def assert_same(found: State, expected: Naive, tolerance: float = 1e-6) -> None:
    for name, value in expected.items():
        assert found[name].double().numpy() == pytest.approx(value, abs=tolerance), name


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_checkpoints_and_live_runs_give_the_papers_formula(count: int, seed: int, make_pool: MakePool) -> None:
    states, base = near_states(count, seed)
    expected, shares = naive([exact(state) for state in states], exact(base))
    pool = make_pool(states, base)
    choice = choose(pool)
    assert shares_of(choice) == pytest.approx({name: shares[name] for name in pool.sizes})
    assert 0.05 < np.mean(list(shares.values())) < 0.95, "a test of ratios between the ends"
    rows = tensor_rows(choice.mix, pool)
    for place, row in zip(pool.mixed, rows, strict=True):
        t = shares[place.name]
        assert row == pytest.approx([t / count] * count + [1 - t])
    assert_same(built(choice.mix, pool), expected)
    assert_same(merge(states, base), expected)
    sizes = list(pool.sizes.values())
    assert choice.notes["mean_ratio"] == pytest.approx(np.average([shares[name] for name in pool.sizes], weights=sizes))


@pytest.mark.parametrize("cosine", [0.0, 0.1, 0.5, 0.9])
def test_two_models_give_twice_the_cosine_over_one_plus_it(cosine: float) -> None:
    found = ratio(np.array([[4.0, 6 * cosine], [6 * cosine, 9.0]]))
    assert (found.t, found.cosine) == pytest.approx((2 * cosine / (1 + cosine), cosine))
    assert not found.clamped


def test_negative_cosines_give_the_base_and_are_counted(make_pool: MakePool) -> None:
    states, base = near_states(3)
    # Sums of deltas near zero: the formula's pole is at a mean cosine of -1/2.
    for name in ("stem.weight", "head.weight"):
        lean = torch.randn(base[name].shape, generator=torch.Generator().manual_seed(1))
        moves = states[0][name] - base[name], states[1][name] - base[name]
        states[2][name] = base[name] - moves[0] - moves[1] + 0.01 * lean
    choice = choose(make_pool(states, base))
    assert choice.notes["clamped"] == 2
    assert choice.notes["clamped_tensors"] == ["stem.weight", "head.weight"]
    fused = merge(states, base)
    for name in ("stem.weight", "head.weight"):
        assert shares_of(choice)[name] == 0
        assert fused[name].equal(base[name])
        assert next(point["cosine"] for point in choice.curves["ratio"] if point["name"] == name) < -0.3
    assert ratio(np.array([[1.0, -1.0], [-1.0, 1.0]])) == (0.0, True, -1.0)


def test_a_delta_of_zero_gives_the_mean(make_pool: MakePool) -> None:
    states, base = near_states(3)
    states[1]["head.weight"] = base["head.weight"].clone()
    pool = make_pool(states, base)
    choice = choose(pool)
    assert shares_of(choice)["head.weight"] == 1
    assert choice.notes["zero_deltas"] == 1
    mean = {"head.weight": np.mean([exact(state)["head.weight"] for state in states], axis=0)}
    assert_same(built(choice.mix, pool), mean)
    assert_same(merge(states, base), mean)


def test_tensors_that_all_ingredients_share_are_left_alone(make_pool: MakePool) -> None:
    states, base = near_states(3)
    for state in states:
        state["head.weight"] = states[0]["head.weight"].clone()
    pool = make_pool(states, base)
    choice = choose(pool)
    assert shares_of(choice)["head.weight"] == 1
    row = tensor_rows(choice.mix, pool)[list(pool.sizes).index("head.weight")]
    assert row[-1] == 0, "the base has no part in it"
    assert_same(built(choice.mix, pool), {"head.weight": exact(states[0])["head.weight"]})
    assert merge(states, base)["head.weight"].equal(states[0]["head.weight"])


def test_equal_columns_give_the_ingredient_back(make_pool: MakePool) -> None:
    states, base = near_states(3)
    pool = make_pool(states, base)
    one = ingredients_of(pool)["model_1"]
    choice = choose(pool, {"a": one, "b": one, "c": one})
    assert np.array_equal(tensor_rows(choice.mix, pool)[:, -1], np.zeros(len(pool.mixed)))
    assert tensor_rows(choice.mix, pool) == pytest.approx(tensor_rows(one, pool), abs=1e-12)
    merged = merge([states[1]] * 3, base)
    assert all(merged[name].equal(states[1][name]) for name in states[1])


def test_permuting_ingredients_permutes_columns(make_pool: MakePool) -> None:
    states, base = near_states(3)
    rows = tensor_rows(choose(make_pool(states, base)).mix, make_pool(states, base))
    for order in permutations(range(3)):
        pool = make_pool([states[number] for number in order], base)
        assert tensor_rows(choose(pool).mix, pool) == pytest.approx(rows[:, [*order, 3]])


@pytest.mark.parametrize("seed", range(4))
def test_soups_of_soups_equal_their_weights(seed: int, make_pool: MakePool) -> None:
    states, base = near_states(4, seed)
    pool = make_pool(states, base)
    members = list(ingredients_of(pool).values())
    columns = {
        "soup": combine(members[:2], [0.3, 0.7]),
        "by tensor": random_mix(make_groups("tensor", pool.sizes), pool.columns, seed),
        "by block": random_mix(make_groups("block", pool.sizes), pool.columns, seed + 1, affine=True),
    }
    weights = [exact({name: built(mix, pool)[name] for name in pool.sizes}) for mix in columns.values()]
    expected, shares = naive(weights, {name: exact(base)[name] for name in pool.sizes})
    choice = choose(pool, columns)
    assert shares_of(choice) == pytest.approx(shares, abs=1e-5)
    assert_same(built(choice.mix, pool), expected, 1e-5)


def test_the_base_among_the_columns_is_a_zero_delta(make_pool: MakePool) -> None:
    states, base = near_states(2)
    pool = make_pool(states, base)
    groups = make_groups("whole", pool.sizes)
    columns = {name: one_hot(groups, pool.columns, name) for name in pool.columns}
    choice = choose(pool, columns)
    assert choice.notes["zero_deltas"] == len(pool.mixed)
    assert tensor_rows(choice.mix, pool) == pytest.approx(1 / 3)
    alone = choose(pool, {"a": columns["base"], "b": columns["base"]})
    assert np.array_equal(tensor_rows(alone.mix, pool), tensor_rows(columns["base"], pool))


def test_the_seed_changes_nothing(make_pool: MakePool) -> None:
    pool = make_pool(*near_states(3))
    assert choose(pool, seed=1).mix == choose(pool, seed=2).mix


def test_a_pool_without_base_and_one_column_are_refused(make_pool: MakePool) -> None:
    states, base = near_states(2)
    with pytest.raises(PoolError, match="it needs the base"):
        choose(make_pool(states))
    pool = make_pool(states, base)
    with pytest.raises(PoolError, match=r"two ingredients or more.* found 1 \(model_1\)"):
        choose(pool, {"model_1": ingredients_of(pool)["model_1"]})


def test_products_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, base = torch.randn(3, 1000, generator=generator), torch.randn(1000, generator=generator)
    deltas = vectors.double().numpy() - base.double().numpy()
    for chunk in (1, 37, 4000, 2**20):
        monkeypatch.setattr(model_stock, "CHUNK", chunk)
        assert products(list(vectors), base) == pytest.approx(deltas @ deltas.T, rel=1e-12)


def test_large_offsets_do_not_hide_small_deltas() -> None:
    """Inner products of deltas, not differences of large inner products."""
    base = torch.full((1000,), 4096.0)
    moves = torch.tensor([1.0, -1.0]).repeat(500) / 2048
    found = ratio(products([base + moves, base + 2 * moves, base + moves.abs()], base))
    assert found.cosine == pytest.approx(1 / 3, rel=1e-12)


def test_merge_keeps_dtypes_and_takes_whole_numbers_from_the_first() -> None:
    states, base = near_states(2)
    for number, state in enumerate(states):
        state["steps"] = torch.tensor(10 + 90 * number)
        state["mask"] = torch.tensor([number == 1, True])
        state["attn_mask"] = torch.tensor([0.0, -torch.inf])
        state["head.weight"] = state["head.weight"].double()
        state["stem.weight"] = state["stem.weight"].bfloat16()
    base |= {"mask": torch.tensor([False, False]), "attn_mask": torch.tensor([0.0, -torch.inf])}
    before = copy.deepcopy(states)
    merged = merge(states, base)
    assert list(merged) == list(states[0])
    assert {name: (each.dtype, each.shape) for name, each in merged.items()} == {
        name: (each.dtype, each.shape) for name, each in states[0].items()
    }
    assert merged["steps"] == 10
    assert merged["mask"].tolist() == [False, True]
    assert merged["attn_mask"].tolist() == [0.0, -torch.inf]
    expected, _ = naive([{n: exact(s)[n] for n in FLOATS} for s in states], {n: exact(base)[n] for n in FLOATS})
    stem = expected.pop("stem.weight")
    assert_same(merged, expected)
    # Rounded once: the nearest bfloat16, or its neighbour where float32 decided a tie.
    assert merged["stem.weight"].double().numpy() == pytest.approx(stem, rel=2**-8)
    assert_same(merged, {"head.weight": expected["head.weight"]}, 1e-15)
    for tensor in merged.values():
        tensor.zero_()
    for state, old in zip(states, before, strict=True):
        assert all(state[name].equal(old[name]) for name in old), "merge shares no memory"


class Tiny(nn.Module):
    """Weights, a normalisation with statistics and counters, and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.outer = nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(torch.relu(self.norm(self.inner(x))))
        return out


def train(run: nn.Module, seed: int, steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(run.parameters(), lr=0.1)
    for _ in range(steps):
        x = torch.randn(16, 5, generator=generator)
        loss: Tensor = nn.functional.cross_entropy(run(x), (x.sum(1) > 0).long())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_live_runs_go_on_from_the_merged_weights() -> None:
    """The loop of the docstring, beside the formula at every merge."""
    torch.manual_seed(0)
    runs = [Tiny()]
    runs.append(copy.deepcopy(runs[0]))
    pretrained = copy.deepcopy(runs[0])
    base = pretrained.state_dict()
    for period in range(3):
        for number, run in enumerate(runs):
            train(run, 10 * period + number)
        expected, shares = naive([exact(run.state_dict()) for run in runs], exact(base))
        assert any(0.1 < share < 0.99 for share in shares.values())
        # As state dicts, and as the parameters that an optimizer holds.
        held = [dict(run.named_parameters()) | dict(run.named_buffers()) for run in (*runs, pretrained)]
        merged = merge(held[:2], held[2])
        assert not any(tensor.requires_grad for tensor in merged.values())
        merged = merge([run.state_dict() for run in runs], base)
        for run in runs:
            run.load_state_dict(merged)
            assert_same(dict(run.state_dict()), expected)
        assert merged["norm.num_batches_tracked"] == 5 * (period + 1)
    x = torch.randn(4, 5)
    assert runs[0].eval()(x).equal(runs[1].eval()(x))


def test_state_dicts_that_do_not_fit_are_named() -> None:
    states, base = near_states(3)
    with pytest.raises(PoolError, match="two runs or more, found 1"):
        merge(states[:1], base)
    del states[1]["scale"]
    states[2]["stem.weight"] = torch.zeros(3, 6)
    base["more"] = torch.zeros(1)
    base["steps"] = torch.tensor(1.5)
    with pytest.raises(PoolError) as found:
        merge(states, base)
    for text in (
        "4 problems",
        "state 1 lacks 1 tensors of state 0: scale",
        "state 2: stem.weight has shape [3, 6], expected [6, 3]",
        "the base has 1 tensors that state 0 lacks: more",
        "the base: steps is torch.float32, expected torch.int64",
    ):
        assert text in str(found.value)


def test_a_diverged_run_and_complex_tensors_are_refused() -> None:
    states, base = near_states(2)
    states[1]["head.weight"][0, 0] = torch.nan
    with pytest.raises(PoolError, match=r"head\.weight: .*diverged"):
        merge(states, base)
    waves = {"wave": torch.ones(2, dtype=torch.complex64)}
    with pytest.raises(PoolError, match="wave is complex"):
        merge([waves, waves], waves)
