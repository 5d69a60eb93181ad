"""Learned soups against torch's own autograd through an explicit sum of all state dicts, and on laws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from mixopt import (
    DataError,
    Mix,
    Objective,
    PoolError,
    ScoreError,
    SpecError,
    combine,
    load_spec,
    make_groups,
    open_objective,
)
from mixopt.comparison.running import ingredient_mixes
from mixopt.methods import learned, learned_by_layer
from mixopt.weights.builder import tensor_rows
from mixopt.weights.pool import Pool
from tests.conftest import CLASSES, make_images, random_mix
from tests.methods.landscape import Landscape, ingredients_of, random_pool


@pytest.fixture
def objective(clip_pool_template: Path, tmp_path: Path) -> Objective:
    return open_objective(load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu", "confirm": 0}))


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return random_pool(tmp_path_factory.mktemp("learned"))


class Reference:
    """The paper's way: every model in memory, and autograd through their weighted sum."""

    def __init__(self, folder: Path, objective: Objective) -> None:
        self.model: Any = open_clip.create_model(f"local-dir:{folder}", load_weights=False).eval()
        self.names = objective.pool.ingredients
        self.states = {name: load_file(folder / f"{name}.safetensors") for name in self.names}
        self.model.load_state_dict(load_file(folder / "base.safetensors"))
        self.head = open_clip.build_zero_shot_classifier(
            self.model,
            open_clip.get_tokenizer(f"local-dir:{folder}"),
            CLASSES,
            ("a photo of a {}.", "a {} thing."),
        )
        split = objective.evaluators["validation"].split
        self.images = ((torch.tensor(np.array(split.arrays["images"])) / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
        self.labels = torch.tensor(split.labels)

    def loss(self, rows: dict[str, Tensor], samples: np.ndarray[Any, Any], scale: Tensor) -> Tensor:
        """Rows ``[n_ingredients]`` by tensor name, with a graph."""
        state = dict(self.states[self.names[0]])
        for name, row in rows.items():
            state[name] = sum(row[i] * self.states[each][name] for i, each in enumerate(self.names))  # type: ignore[assignment]
        features = functional_call(self.model, state, (self.images[samples],), {"text": None})
        image_features = features[0] if isinstance(features, tuple) else features["image_features"]
        logits = state["logit_scale"].exp() * image_features @ self.head
        return functional.cross_entropy(scale * logits, self.labels[samples])


@pytest.mark.parametrize("scheme", ["whole", "block", "tensor"])
def test_gradient_is_autograds_through_the_sum(scheme: str, clip_pool_template: Path, objective: Objective) -> None:
    pool = objective.pool
    groups = make_groups(scheme, pool.sizes)
    mix = random_mix(groups, pool.columns, seed=3, affine=True)
    only = mix.coefficients.copy()
    only[:, -1] = 0  # without the base, which the reference does not hold
    mix = Mix(groups, pool.columns, only / only.sum(axis=1, keepdims=True))
    samples = np.array([5, 3, 80, 41, 7])
    found = objective.gradient(mix, samples, 1.3)

    reference = Reference(clip_pool_template, objective)
    rows = torch.tensor(mix.coefficients[:, :-1], dtype=torch.float32, requires_grad=True)
    scale = torch.tensor(1.3, requires_grad=True)
    of = groups.index()
    loss = reference.loss({name: rows[of[name]] for name in pool.sizes}, samples, scale)
    loss.backward()  # type: ignore[no-untyped-call]
    assert rows.grad is not None
    assert scale.grad is not None
    assert found.loss == pytest.approx(float(loss.detach()), rel=1e-5)
    assert found.scale == pytest.approx(float(scale.grad), rel=1e-4, abs=1e-6)
    assert found.coefficients[:, :-1] == pytest.approx(rows.grad.numpy(), rel=2e-3, abs=2e-5)


@pytest.mark.parametrize("form", ["softmax", "affine"])
@pytest.mark.parametrize("scheme", ["whole", "block"])
def test_learning_is_the_papers_recipe(form: Any, scheme: str, clip_pool_template: Path, objective: Objective) -> None:
    pool = objective.pool
    options: dict[str, Any] = {"form": form, "epochs": 2, "lr": 0.05, "weight_decay": 0.01, "batch": 40}
    columns = ingredient_mixes(objective)
    if scheme == "whole":
        choice = learned.choose(objective, columns, seed=4, options=learned.Options(**options))
    else:
        by_layer = learned_by_layer.Options(groups=scheme, **options)
        choice = learned_by_layer.choose(objective, columns, seed=4, options=by_layer)

    reference = Reference(clip_pool_template, objective)
    groups = make_groups(scheme, pool.sizes)
    of = groups.index()
    alpha = torch.zeros(len(groups), 4, requires_grad=True)
    beta = torch.ones((), requires_grad=True)
    optimizer = torch.optim.AdamW([alpha, beta], lr=0.05, weight_decay=0.01)

    def rows() -> Tensor:
        if form == "softmax":
            return alpha.softmax(dim=1)
        return 0.25 + 0.1 * (alpha - alpha.mean(dim=1, keepdim=True))

    random = np.random.default_rng(4)
    for _ in range(2):
        order = random.permutation(96)
        for samples in (order[:40], order[40:80], order[80:]):
            now = rows()
            loss = reference.loss({name: now[of[name]] for name in pool.sizes}, samples, beta)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert choice.mix.coefficients[:, :-1] == pytest.approx(rows().detach().numpy(), abs=2e-4)
    assert np.all(choice.mix.coefficients[:, -1] == 0), "the base is no ingredient"
    assert choice.notes["scale"] == pytest.approx(float(beta.detach()), abs=2e-4)
    assert len(choice.curves["loss"]) == 2


def test_a_gradient_is_computed_once_and_counted_always(clip_pool_template: Path, tmp_path: Path) -> None:
    spec = load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu", "confirm": 0})
    first = open_objective(spec)
    chosen = learned.choose(first, ingredient_mixes(first), seed=0, options=learned.Options(batch=32))
    again = open_objective(spec)
    assert learned.choose(again, ingredient_mixes(again), seed=0, options=learned.Options(batch=32)).mix == chosen.mix
    for objective, computed in ((first, 9), (again, 0)):
        assert objective.tally.evaluations == 3, "three passes over the split"
        assert objective.tally.images == objective.tally.gradient_images == 3 * 96
        assert len(objective.tally.runs) == computed
    assert again.tally.seconds == first.tally.seconds > 0


def test_scores_before_and_after_a_gradient_are_the_same(objective: Objective) -> None:
    mix = random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns)
    before = objective.score(mix, "test")
    objective.gradient(mix, np.arange(10))
    assert not any(weight.requires_grad for weight in objective.scorer.engine.builder.module.parameters())
    objective.scorer.engine.builder.apply(mix)
    evaluator = objective.evaluators["test"]
    assert np.array_equal(evaluator.run(objective.scorer.engine.predict()).losses, before.outcomes.losses)


def test_a_tuned_text_tower_gets_its_gradient(clip_pool: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for number in range(2):
        path = clip_pool / f"model_{number}.safetensors"
        state = load_file(path)
        generator = torch.Generator().manual_seed(number)
        weight = state["token_embedding.weight"]
        state["token_embedding.weight"] = weight + 0.05 * torch.randn(weight.shape, generator=generator)
        save_file(state, path)
    objective = open_objective(load_spec({"models": clip_pool, "cache": tmp_path, "device": "cpu", "confirm": 0}))
    pool = objective.pool
    groups = make_groups("tensor", pool.sizes)
    row = groups.names.index("token_embedding.weight")
    samples = np.arange(96)

    def moved(by: float) -> Mix:
        rows = np.full((len(groups), len(pool.columns)), 0.25)
        rows[:, -1] = 0
        rows[row, 0] += by
        rows[row, 1] -= by
        return Mix(groups, pool.columns, rows)

    slope = objective.gradient(moved(0), samples).coefficients[row]
    step = 0.001
    change = objective.gradient(moved(step), samples).loss - objective.gradient(moved(-step), samples).loss
    assert slope[0] - slope[1] == pytest.approx(change / (2 * step), rel=0.05)
    assert abs(slope[0] - slope[1]) > 1e-5


@pytest.mark.parametrize("form", ["softmax", "affine"])
def test_rows_sum_to_one_and_only_the_affine_leave_the_hull(form: Any, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    landscape.optimum[:, 0] -= 0.6
    landscape.optimum[:, 1] += 0.6
    mix = learned_by_layer.choose(
        landscape, ingredients_of(pool), seed=0, options=learned_by_layer.Options(form=form, epochs=60)
    ).mix
    assert mix.coefficients.sum(axis=1) == pytest.approx(1)
    assert (mix.coefficients.min() < 0) == (form == "affine")


@pytest.mark.parametrize("module", [learned, learned_by_layer])
def test_learning_gets_nearer_to_the_optimum(module: Any, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    soup = combine(list(ingredients_of(pool).values()), [0.2] * 5)
    options = module.Options(epochs=80, weight_decay=0.0, batch=8)
    choice = module.choose(landscape, ingredients_of(pool), seed=0, options=options)
    assert landscape.distance(choice.mix) < 0.3 * landscape.distance(soup)
    assert not landscape.asked, "learned from the loss alone"
    losses = [point["value"] for point in choice.curves["loss"]]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("samples", "schedule", "batch"),
    [(4000, "cosine", 256), (800, "cosine", 60), (50, "cosine", 16), (800, "constant", 256), (9, "cosine", 16)],
)
def test_few_samples_are_taken_in_small_steps_where_the_rate_falls(
    samples: int, schedule: Any, batch: int, pool: Pool
) -> None:
    landscape: Any = Landscape(pool)
    landscape.samples = samples
    options = learned_by_layer.Options(form="affine", schedule=schedule, epochs=3)
    assert learned_by_layer.choose(landscape, ingredients_of(pool), seed=0, options=options).notes["batch"] == batch
    given = replace(options, batch=7 * 64)
    assert learned_by_layer.choose(landscape, ingredients_of(pool), seed=0, options=given).notes["batch"] == 448


def test_permuting_columns_permutes_coefficients(pool: Pool) -> None:
    columns = ingredients_of(pool)
    turned = dict(reversed(columns.items()))
    first = learned.choose(Landscape(pool), columns, seed=0)  # type: ignore[arg-type]
    second = learned.choose(Landscape(pool), turned, seed=0)  # type: ignore[arg-type]
    assert first.mix.coefficients == pytest.approx(second.mix.coefficients, abs=1e-12)


def test_columns_may_be_mixes_with_groups_of_their_own(pool: Pool) -> None:
    by_tensor = random_mix(make_groups("tensor", pool.sizes), pool.columns, seed=1)
    by_block = random_mix(make_groups("block", pool.sizes), pool.columns, seed=2)
    landscape: Any = Landscape(pool)
    options = learned.Options(form="affine", epochs=40)
    choice = learned.choose(landscape, {"first": by_tensor, "second": by_block}, seed=0, options=options)
    first, second = tensor_rows(by_tensor, pool), tensor_rows(by_block, pool)
    # One weight for all tensors: the least-squares best of them is known.
    difference = (first - second).ravel()
    weight = (landscape.optimum - second).ravel() @ difference / (difference @ difference)
    assert tensor_rows(choice.mix, pool) == pytest.approx(weight * first + (1 - weight) * second, abs=0.05)


def test_a_loss_that_diverges_says_so(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(ScoreError, match=r"diverged in epoch \d+: the loss grew from .* smaller lr \(now 1000\)"):
        learned.choose(landscape, ingredients_of(pool), seed=0, options=learned.Options(form="affine", lr=1000.0))


@pytest.mark.parametrize("lr", [1e15, 1e300])
def test_rows_that_are_no_mix_any_more_say_so_too(lr: float, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(ScoreError, match=r"diverged in .*use a smaller lr"):
        learned.choose(landscape, ingredients_of(pool), seed=0, options=learned.Options(form="affine", lr=lr))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"epochs": 0}, "epochs: expected 1 or more, found 0"),
        ({"batch": 0}, "batch: expected 1 or more, found 0"),
        ({"lr": -1.0}, "lr: expected a number above 0, found -1"),
        ({"step": 0.0}, "step: expected a number above 0"),
        ({"weight_decay": -0.1}, "weight_decay: expected 0 or more"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], says: str, pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    for module in (learned, learned_by_layer):
        with pytest.raises(SpecError, match=says):
            module.choose(landscape, ingredients_of(pool), seed=0, options=module.Options(**options))


def test_one_ingredient_is_too_few(pool: Pool) -> None:
    landscape: Any = Landscape(pool)
    with pytest.raises(PoolError, match="at least two ingredients, found step_100"):
        learned.choose(landscape, {"step_100": ingredients_of(pool)["step_100"]}, seed=0)


def test_classes_missing_from_the_selection_split(clip_pool: Path, tmp_path: Path) -> None:
    images = make_images(96, seed=0)
    kept = images["y"] != 2
    np.savez(clip_pool / "val.npz", x=images["x"][kept], y=images["y"][kept], classes=images["classes"])
    objective = open_objective(load_spec({"models": clip_pool, "cache": tmp_path, "device": "cpu", "confirm": 0}))
    with pytest.raises(DataError, match=r"val\.npz: has no samples of 1 of the model's 4 classes \(blue\)"):
        learned.choose(objective, ingredient_mixes(objective), seed=0)


def test_memory_is_one_models_gradient_whatever_the_number_of_ingredients(tmp_path: Path) -> None:
    """The largest allocation that a gradient makes is that of one model, not of the stack."""
    from torch.profiler import ProfilerActivity, profile

    from mixopt.weights.builder import FastBuilder

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in ("stem", "head"):
                self.add_module(name, torch.nn.Linear(300, 300))

        def forward(self, images: Tensor) -> Tensor:
            hidden: Tensor = self.get_submodule("stem")(images)
            logits: Tensor = self.get_submodule("head")(hidden)
            return logits

    from safetensors.torch import save_file

    from mixopt import open_pool

    peaks = []
    for count in (2, 12):
        paths = {}
        for number in range(count):
            torch.manual_seed(number)
            paths[f"m_{number}"] = tmp_path / f"{count}_{number}.safetensors"
            save_file(Net().state_dict(), paths[f"m_{number}"])
        opened = open_pool(paths)
        builder = FastBuilder(opened, Net(), torch.device("cpu"))
        uniform = Mix(make_groups("tensor", opened.sizes), opened.columns, np.full((4, count), 1 / count))
        builder.apply(uniform)
        images = torch.randn(8, 300)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            builder.gradient(lambda builder=builder, images=images: builder.module(images).square().mean())  # type: ignore[misc]
        allocated = [event.self_cpu_memory_usage for event in profiled.events() if event.self_cpu_memory_usage > 0]
        peaks.append(sum(allocated))
        one_model = opened.stack.shape[1] * 4
        assert peaks[-1] < 3 * one_model
    assert peaks[1] < 1.1 * peaks[0]
