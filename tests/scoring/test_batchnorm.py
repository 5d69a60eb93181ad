"""BatchNorm statistics: torch's own update_bn as the reference, what is left alone, and what a run records."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import mixopt
from mixopt import CheckpointError, Listener, Mix, MixoptError, PoolError, ScoreError, SpecError, load_spec
from mixopt.assemble import Assembly, assemble
from mixopt.runs.search import SearchResult
from mixopt.scoring.batchnorm import BATCH, IMAGES, Recompute, find_layers, negative_variance
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.objective import Objective
from mixopt.values.groups import make_groups
from mixopt.values.mix import constant, one_hot
from mixopt.values.recipe import Recipe
from mixopt.weights import saving
from tests.batchnorm_family import Net
from tests.conftest import CLASSES, State, make_images, random_mix
from tests.counting import count_fused
from tests.listening import Recorder
from tests.scoring.batchnorm_pool import STATISTICS, ingredients, trained, write_pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics that are wrong in all checkpoints, so that recomputing is better."""
    states = ingredients(trained(own_statistics=True), shift=0.7)
    return write_pool(tmp_path_factory.mktemp("batchnorm") / "pool", states)


def opened(
    folder: Path, cache: Path, batchnorm: str = "recompute", heard: Recorder | None = None, **options: Any
) -> Assembly:
    spec = load_spec({"models": folder, "cache": cache, "device": "cpu", "batchnorm": batchnorm, **options})
    return assemble(spec, (heard or Recorder()).listener)


def uneven(objective: Objective, seed: int = 0) -> Mix:
    return random_mix(make_groups("tensor", objective.pool.sizes), objective.pool.columns, seed)


def module_of(objective: Objective) -> Any:
    return objective.scorer.engine.builder.module


class Unmoved(nn.Module):
    """A BatchNorm layer that no training mode can reach, for the reference."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.layer = [layer.eval()]

    def forward(self, hidden: Tensor) -> Tensor:
        """As in evaluation."""
        output: Tensor = self.layer[0](hidden)
        return output


def reference_statistics(folder: Path, mix: Mix, batches: Iterable[Tensor], kind: str = "plain") -> State:
    """Fused by hand in a network of its own, dropout and frozen layer taken out of the way, then torch's update_bn."""
    states = [load_file(folder / f"{name}.safetensors") for name in mix.columns]
    rows = dict(zip(mix.groups.names, mix.coefficients, strict=True))
    fused = dict(states[0])
    for name in fused:
        if name in rows:
            parts = [weight * state[name].double() for weight, state in zip(rows[name], states, strict=True)]
            fused[name] = sum(parts, torch.tensor(0.0)).to(states[0][name].dtype)
    net = Net(kind, len(CLASSES))
    net.load_state_dict(fused)
    net.drop.p = 0.0
    net.frozen = Unmoved(net.frozen)  # type: ignore[assignment]
    update_bn(list(batches), net)
    return {name: tensor for name, tensor in net.state_dict().items() if name in STATISTICS}


def in_order(objective: Objective) -> Tensor:
    split = objective.evaluators["validation"].split
    return torch.from_numpy(np.array(split.arrays["images"])).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [96]),
        ({"batch_size": 40}, [32, 32, 32]),
        ({"batch_size": 20, "limit": 50}, [16, 16, 16]),
        ({"batch_size": 1, "limit": 5}, [2, 2]),
    ],
)
def test_statistics_are_those_of_update_bn(
    options: dict[str, Any], sizes: list[int], pool: Path, tmp_path: Path
) -> None:
    assembly = opened(pool, tmp_path, **options)
    objective = assembly.objective
    mix = uneven(objective)
    found = objective.scorer.engine.statistics(mix)
    images = in_order(objective)
    wanted = reference_statistics(pool, mix, torch.split(images[: sum(sizes)], sizes))
    assert found.keys() == wanted.keys() == set(STATISTICS)
    for name in STATISTICS:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-6)
    assert (assembly.batchnorm.as_dict()["images"], assembly.batchnorm.as_dict()["batch"]) == (sum(sizes), sizes[0])


def test_a_large_split_gives_its_first_images(pool: Path, tmp_path: Path) -> None:
    arrays = make_images(IMAGES + 150, seed=5)
    np.savez(tmp_path / "many.npz", **arrays)
    assembly = opened(pool, tmp_path / "cache", data={"search": tmp_path / "many.npz"}, batch_size=500)
    assert (assembly.batchnorm.as_dict()["images"], assembly.batchnorm.as_dict()["batch"]) == (IMAGES, BATCH)
    mix = uneven(assembly.objective)
    wanted = reference_statistics(pool, mix, torch.split(in_order(assembly.objective)[:IMAGES], BATCH))
    found = assembly.objective.scorer.engine.statistics(mix)
    torch.testing.assert_close(found["bn2.running_var"], wanted["bn2.running_var"], rtol=1e-4, atol=1e-6)


def test_outcomes_are_those_of_the_recomputed_network(pool: Path, tmp_path: Path) -> None:
    objective = opened(pool, tmp_path).objective
    mix = constant(make_groups("tensor", objective.pool.sizes), objective.pool.columns, [0.5, 0.25, 0.25])
    score = objective.score(mix, "test")
    states = [load_file(pool / f"{name}.safetensors") for name in mix.columns]
    fused = {name: states[0][name] for name in states[0]}
    for name in objective.pool.sizes:
        fused[name] = 0.5 * states[0][name] + 0.25 * states[1][name] + 0.25 * states[2][name]
    fused |= reference_statistics(pool, mix, [in_order(objective)])
    net = Net("plain", len(CLASSES)).eval()
    net.load_state_dict(fused)
    split = objective.evaluators["test"].split
    images = torch.from_numpy(np.array(split.arrays["images"])).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        losses = nn.functional.cross_entropy(net(images), torch.from_numpy(split.labels), reduction="none")
    assert score.outcomes.losses == pytest.approx(losses.numpy(), abs=1e-4)
    averaged = opened(pool, tmp_path, "average").objective.score(mix, "test")
    assert np.abs(averaged.outcomes.losses - score.outcomes.losses).max() > 0.1


def test_nothing_but_the_statistics_changes(pool: Path, tmp_path: Path) -> None:
    objective = opened(pool, tmp_path).objective
    net = module_of(objective)
    layers = [net.frozen, net.bn1, net.bn2]
    counters = [layer.num_batches_tracked for layer in layers]
    places = {name: tensor.data_ptr() for name, tensor in net.state_dict().items()}
    mix = uneven(objective)
    objective.scorer.engine.builder.apply(mix)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    objective.score(mix)
    after = net.state_dict()
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(STATISTICS)
    assert places == {name: tensor.data_ptr() for name, tensor in after.items()}
    assert [layer.num_batches_tracked for layer in layers] == [7, 7, 7]
    assert all(layer.num_batches_tracked is counter for layer, counter in zip(layers, counters, strict=True))
    assert [layer.momentum for layer in layers] == [0.1] * 3
    assert not any(module.training for module in net.modules())
    assert torch.equal(objective.pool.fixed["frozen.running_mean"], before["frozen.running_mean"])


def test_nothing_of_the_averaged_statistics_is_left(pool: Path, tmp_path: Path) -> None:
    objective = opened(pool, tmp_path).objective
    wanted = objective.scorer.engine.statistics(uneven(objective))
    assert objective.scorer.engine.recompute is not None
    for name in STATISTICS:
        module_of(objective).get_buffer(name).fill_(torch.nan)
    objective.scorer.engine.recompute(module_of(objective))
    found = objective.scorer.engine.recompute.statistics()
    assert all(torch.equal(found[name], wanted[name]) for name in STATISTICS)
    module_of(objective).bn1.running_mean.zero_()
    assert not torch.equal(found["bn1.running_mean"], torch.zeros(6))


def test_layers_are_left_as_they_were_after_an_error(pool: Path, tmp_path: Path) -> None:
    objective = opened(pool, tmp_path).objective
    objective.scorer.engine.builder.apply(uneven(objective))

    def fails(images: Tensor) -> Tensor:
        module_of(objective)(images)
        raise KeyboardInterrupt

    assert objective.scorer.engine.recompute is not None
    with pytest.raises(KeyboardInterrupt):
        objective.scorer.engine.recompute(fails)
    layer = module_of(objective).bn1
    assert (layer.training, layer.momentum, int(layer.num_batches_tracked)) == (False, 0.1, 7)


def test_a_checkpoint_alone_keeps_its_own_statistics_and_outcomes(pool: Path, tmp_path: Path) -> None:
    average = opened(pool, tmp_path / "one", "average").objective
    recompute = opened(pool, tmp_path / "two").objective
    mix = one_hot(make_groups("block", average.pool.sizes), average.pool.columns, "model_1")
    recompute.score(uneven(recompute))
    assert recompute.key(mix, "test") == average.key(mix, "test")
    assert recompute.scorer.engine.statistics(mix) == {}
    assert np.array_equal(recompute.score(mix).outcomes.losses, average.score(mix).outcomes.losses)
    own = load_file(pool / "model_1.safetensors")
    assert all(torch.equal(module_of(recompute).state_dict()[name], own[name]) for name in own)


def test_the_key_of_a_mix_says_how_its_statistics_were_made(pool: Path, tmp_path: Path) -> None:
    mix = uneven(opened(pool, tmp_path).objective)

    def keys(batchnorm: str = "recompute", **options: Any) -> tuple[str, str]:
        objective = opened(pool, tmp_path, batchnorm, **options).objective
        return objective.key(mix, "validation"), objective.key(mix, "test")

    shorter = keys(limit=90)
    found = [keys("average"), keys(), keys(batch_size=30), shorter]
    assert len({key for pair in found for key in pair}) == 8
    assert keys(batch_size=300) == keys()


def test_images_but_not_labels_decide(pool: Path, tmp_path: Path) -> None:
    objective = opened(pool, tmp_path).objective
    evaluator: Any = objective.evaluators["validation"]
    layers = find_layers(objective.pool, module_of(objective))
    dtypes = objective.pool.saved_dtypes(None)
    encoding = opened(pool, tmp_path).family.encoding

    def recompute(**changes: Any) -> Recompute:
        split = replace(evaluator.split, **changes)
        return Recompute(layers, Evaluator(split, encoding, evaluator.device), dtypes)

    wanted = objective.scorer.engine.statistics(uneven(objective))
    unlabelled = recompute(labels=np.full(len(evaluator.split), -1))
    unlabelled(module_of(objective))
    assert all(torch.equal(wanted[name], tensor) for name, tensor in unlabelled.statistics().items())
    assert unlabelled.key == recompute().key
    assert recompute(digests=evaluator.split.digests + 1).key != unlabelled.key
    assert Recompute(layers[:1], evaluator, dtypes).key != unlabelled.key


def test_the_same_mix_scores_the_same_whatever_came_before(pool: Path, tmp_path: Path) -> None:
    mixes: list[Mix] = []
    losses = []
    for name, others in (("one", 0), ("two", 3)):
        objective = opened(pool, tmp_path / name).objective
        mixes = mixes or [uneven(objective, seed) for seed in range(4)]
        for other in mixes[1 : 1 + others]:
            objective.score(other)
        losses.append(objective.score(mixes[0]).outcomes.losses)
        losses.append(objective.score(mixes[0], "test").outcomes.losses)
    assert np.array_equal(losses[0], losses[2])
    assert np.array_equal(losses[1], losses[3])
    assert objective.score(mixes[0]).cached


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_statistics_are_rounded_as_they_are_saved(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = write_pool(tmp_path / "pool", ingredients(trained(own_statistics=True), noise=0.1), dtype)
    objective = opened(folder, tmp_path / "cache").objective
    found = objective.scorer.engine.statistics(uneven(objective))
    held = module_of(objective).state_dict()
    for name in STATISTICS:
        assert found[name].dtype == dtype
        assert torch.equal(held[name], found[name].float())
    exact = opened(folder, tmp_path / "cache", dtype="fp32").objective.scorer.engine.statistics(uneven(objective))
    torch.testing.assert_close(found["bn2.running_mean"].float(), exact["bn2.running_mean"], rtol=0.02, atol=0.02)
    assert not torch.equal(found["bn2.running_mean"].float(), exact["bn2.running_mean"])


def test_statistics_that_overflow_are_told(tmp_path: Path) -> None:
    state = trained(own_statistics=True)
    state["conv2.weight"] = state["conv2.weight"] * 2000
    folder = write_pool(tmp_path / "pool", ingredients(state))
    objective = opened(folder, tmp_path / "cache", dtype="fp16").objective
    with pytest.raises(ScoreError, match=r"not finite in bn2\.running_var \(float16\).*--batchnorm average"):
        objective.score(uneven(objective))


@pytest.mark.parametrize("kind", ["sync", "inside", "unused", "shared"])
def test_kinds_of_layers(kind: str, tmp_path: Path) -> None:
    states = ingredients(trained(kind, own_statistics=True))
    if kind == "shared":
        # One layer under two names, stored under the second of them.
        states = [{name: tensor for name, tensor in state.items() if not name.startswith("bn2.")} for state in states]
    folder = write_pool(tmp_path / "pool", states)
    if kind == "shared":
        for path in folder.glob("*.safetensors"):
            tensors = load_file(path)
            ties = {name.replace("alias", "bn2"): name for name in tensors if name.startswith("alias.")}
            save_file(tensors, path, metadata=ties)
    objective = opened(folder, tmp_path / "cache", model=kind).objective
    mix = uneven(objective)
    objective.scorer.engine.builder.apply(mix)
    averaged = {name: tensor.clone() for name, tensor in module_of(objective).state_dict().items()}
    found = objective.scorer.engine.statistics(mix)
    # Of two names, the one that the model has first, whichever of them the files have.
    assert not torch.allclose(found["bn2.running_mean"], averaged["bn2.running_mean"])
    if kind == "unused":
        # No image reaches it: what the checkpoints say stays.
        assert torch.equal(found["never.running_mean"], averaged["never.running_mean"])
        assert torch.equal(found["never.running_var"], averaged["never.running_var"])
    else:
        assert len(found) == 4
    if kind in ("sync", "inside"):
        plain = write_pool(tmp_path / "plain", ingredients(trained(own_statistics=True)))
        wanted = opened(plain, tmp_path / "cache").objective.scorer.engine.statistics(mix)
        assert all(torch.allclose(found[name], wanted[name]) for name in wanted)


def test_a_layer_of_which_half_differs_is_averaged(pool: Path, tmp_path: Path) -> None:
    states = ingredients(trained(own_statistics=True))
    for state in states:
        state["bn1.running_var"] = torch.ones(6)
    objective = opened(write_pool(tmp_path / "pool", states), tmp_path / "cache").objective
    mix = uneven(objective)
    assert objective.scorer.engine.statistics(mix).keys() == {"bn2.running_mean", "bn2.running_var"}
    assert torch.equal(module_of(objective).bn1.running_var, torch.ones(6))


def uniform_losses(pool: Path, cache: Path, batchnorm: str) -> float:
    objective = opened(pool, cache, batchnorm).objective
    row = [1 / len(objective.pool.columns)] * len(objective.pool.columns)
    return objective.score(constant(make_groups("whole", objective.pool.sizes), objective.pool.columns, row)).value


@pytest.mark.parametrize("better", ["recompute", "average"])
def test_auto_keeps_the_better_and_says_so(better: str, pool: Path, tmp_path: Path) -> None:
    if better == "average":
        # A head fitted to other statistics than those of the images.
        pool = write_pool(tmp_path / "pool", ingredients(trained(own_statistics=False), noise=0.002))
    heard = Recorder()
    assembly = opened(pool, tmp_path / "cache", "auto", heard)
    wanted = {mode: uniform_losses(pool, tmp_path / "other", mode) for mode in ("average", "recompute")}
    assert min(wanted, key=lambda mode: wanted[mode]) == better
    assert assembly.batchnorm.as_dict()["mode"] == better
    assert assembly.batchnorm.as_dict()["scores"] == wanted
    assert assembly.batchnorm.as_dict()["layers"] == 2
    assert assembly.batchnorm.as_dict()["soup"] == ["model_0", "model_1", "model_2"]
    shown = assembly.batchnorm.as_dict()
    assert ("images" in shown) == ("key" in shown) == (better == "recompute")
    json.dumps(shown)
    scores = f"average {wanted['average']:.4f}, recompute {wanted['recompute']:.4f}"
    told = f"by nll of the uniform soup on validation: {scores}"
    assert told in "\n".join(heard.told)
    assert ("2 layers are recomputed for every mix" in "\n".join(heard.told)) == (better == "recompute")
    assert ("96 images of validation" in "\n".join(heard.told)) == (better == "recompute")
    assert ("2 layers are averaged with the weights" in "\n".join(heard.told)) == (better == "average")
    mix = uneven(assembly.objective)
    assert bool(assembly.objective.scorer.engine.statistics(mix)) == (better == "recompute")
    assert assembly.objective.key(mix, "test") == opened(pool, tmp_path, better).objective.key(mix, "test")
    assert assembly.objective.tally.evaluations == 0


def test_auto_scores_each_way_once(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_fused(monkeypatch)
    for _ in range(2):
        opened(pool, tmp_path, "auto")
    assert calls == [2]
    for mode in ("average", "recompute"):
        uniform_losses(pool, tmp_path, mode)
    assert calls == [2]


def test_equal_scores_keep_the_average(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recompute, "__call__", lambda self, predict: None)
    assert opened(pool, tmp_path, "auto").batchnorm.mode == "average"


def test_one_ingredient_and_a_base_are_compared_halfway(pool: Path, tmp_path: Path) -> None:
    found = opened(pool, tmp_path, "auto", base=pool / "model_2.safetensors", ingredients=("model_0.safetensors",))
    assert found.batchnorm.soup == ("model_0", "model_2")
    assert len(set((found.batchnorm.scores or {}).values())) == 2
    several = opened(pool, tmp_path, "auto", base=pool / "model_2.safetensors")
    assert several.batchnorm.soup == ("model_0", "model_1")


@pytest.mark.parametrize("batchnorm", ["auto", "recompute", "average"])
def test_without_such_layers_nothing_is_scored(
    batchnorm: str, pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count_fused(monkeypatch)
    state = trained(own_statistics=True)
    states = ingredients(state)
    for tuned in states:
        tuned |= {name: state[name] for name in STATISTICS}
    heard = Recorder()
    assembly = opened(write_pool(tmp_path / "pool", states), tmp_path / "cache", batchnorm, heard)
    assert calls == [0]
    assert assembly.batchnorm.as_dict() == {"mode": "average", "layers": 0}
    assert assembly.objective.scorer.engine.statistics(uneven(assembly.objective)) == {}
    warnings = heard.warnings
    expected = ["--batchnorm recompute: the checkpoints differ in no BatchNorm statistics; nothing is recomputed"]
    assert warnings == (expected if batchnorm == "recompute" else [])
    assert ("BatchNorm" in "\n".join(heard.told)) == (batchnorm == "recompute")


@pytest.mark.parametrize("batchnorm", ["recompute", "average"])
def test_the_mode_in_use_is_said(batchnorm: str, pool: Path, tmp_path: Path) -> None:
    heard = Recorder()
    opened(pool, tmp_path, batchnorm, heard)
    wanted = "are recomputed" if batchnorm == "recompute" else "are averaged"
    (said,) = [text for text in heard.told if "2 layers" in text]
    assert wanted in said
    assert f"(batchnorm: {batchnorm})" in said
    assert "averaged" not in "\n".join(heard.told) or batchnorm == "average"


def test_a_predictor_that_undoes_training_mode_is_told(pool: Path, tmp_path: Path) -> None:
    family = "tests.batchnorm_family:always_eval"
    objective = opened(pool, tmp_path, family=family).objective
    with pytest.raises(SpecError, match="does not run the module's BatchNorm layers in training mode"):
        objective.score(uneven(objective))
    heard = Recorder()
    assembly = opened(pool, tmp_path, "auto", heard, family=family)
    assert assembly.batchnorm.as_dict()["mode"] == "average"
    assert assembly.batchnorm.as_dict()["scores"]["recompute"] is None
    assert any("training mode" in text for text in heard.warnings)


def test_one_image_has_no_variance(pool: Path, tmp_path: Path) -> None:
    with pytest.raises(MixoptError, match="cannot be recomputed from 1 image"):
        opened(pool, tmp_path, limit=1)
    heard = Recorder()
    assert opened(pool, tmp_path, "auto", heard, limit=1).batchnorm.mode == "average"
    assert "cannot be recomputed from 1 image" in "\n".join(heard.told)


def outside(objective: Objective) -> Mix:
    """A mix that takes more of one checkpoint than there is, so that a variance falls below 0."""
    groups = make_groups("tensor", objective.pool.sizes)
    rows = np.tile([1.0, 0.0, 0.0], (len(groups), 1))
    rows[groups.names.index("bn2.running_var")] = [-400.0, 401.0, 0.0]
    return Mix(groups, objective.pool.columns, rows)


def test_a_negative_variance_is_named(tmp_path: Path) -> None:
    states = ingredients(trained(own_statistics=True))
    states[1]["bn2.running_var"] = states[0]["bn2.running_var"] * 0.5
    folder = write_pool(tmp_path / "pool", states)
    objective = opened(folder, tmp_path / "cache", "average").objective
    mix = outside(objective)
    objective.scorer.engine.builder.apply(uneven(objective))
    assert negative_variance(objective.pool, module_of(objective)) is None
    objective.scorer.engine.builder.apply(mix)
    assert negative_variance(objective.pool, module_of(objective)) == "bn2.running_var"
    with pytest.raises(ScoreError, match=r"bn2\.running_var.*negative") as caught:
        objective.score(mix)
    assert caught.value.group == "bn2.running_var"
    assert np.isfinite(opened(folder, tmp_path / "cache").objective.score(mix).value)


def recipe_of(assembly: Assembly, mix: Mix, **changes: Any) -> Recipe:
    pool = assembly.objective.pool
    draft = Recipe(
        method="search",
        mix=mix,
        ingredients=pool.fingerprints,
        base=None,
        family=assembly.family.identity(),
        dtypes=saving.compact_dtypes(pool.saved_dtypes(None)),
        buffers_from=None,
        batchnorm=assembly.batchnorm.as_dict()["mode"],
        metric="nll",
        data={},
        scores={},
        seed=0,
        output_hash="",
        version="0",
    )
    return replace(draft, **changes)


def kept(assembly: Assembly, mix: Mix, folder: Path) -> Recipe:
    statistics = assembly.objective.scorer.engine.statistics(mix)
    return saving.keep_statistics(folder, recipe_of(assembly, mix), statistics, assembly.batchnorm.as_dict()["images"])


def test_statistics_are_kept_beside_the_recipe_and_found_again(pool: Path, tmp_path: Path) -> None:
    assembly = opened(pool, tmp_path / "cache")
    mix = uneven(assembly.objective)
    recipe = kept(assembly, mix, tmp_path / "run")
    assert recipe.statistics is not None
    assert recipe.statistics.keys() == {"file", "hash", "images"}
    assert (recipe.statistics["file"], recipe.statistics["images"]) == ("batchnorm.safetensors", 96)
    found = saving.find_statistics(recipe, [tmp_path, tmp_path / "run"])
    wanted = assembly.objective.scorer.engine.statistics(mix)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    tensors, _ = saving.fuse(recipe, assembly.objective.pool.paths, assembly.reader, Listener(), found)
    averaged, _ = saving.fuse(
        replace(recipe, statistics=None), assembly.objective.pool.paths, assembly.reader, Listener()
    )
    assert {name for name in tensors if not torch.equal(tensors[name], averaged[name])} == set(STATISTICS)
    assert all(torch.equal(tensors[name], wanted[name]) for name in STATISTICS)
    assert list(tensors) == list(averaged)
    (tmp_path / "run" / "batchnorm.safetensors").rename(tmp_path / "run" / "my_batchnorm_2.safetensors")
    assert saving.find_statistics(recipe, [tmp_path / "run"]).keys() == wanted.keys()


def test_a_mix_without_statistics_of_its_own_leaves_no_file(pool: Path, tmp_path: Path) -> None:
    assembly = opened(pool, tmp_path / "cache")
    kept(assembly, uneven(assembly.objective), tmp_path)
    assert (tmp_path / "batchnorm.safetensors").exists()
    alone = one_hot(make_groups("whole", assembly.objective.pool.sizes), assembly.objective.pool.columns, "model_0")
    recipe = kept(assembly, alone, tmp_path)
    assert recipe.statistics is None
    assert not (tmp_path / "batchnorm.safetensors").exists()
    assert saving.find_statistics(recipe, [tmp_path]) == {}
    assert Recipe.from_json(recipe.to_json(), "here") == recipe


@pytest.mark.parametrize("damage", ["gone", "others", "truncated"])
def test_statistics_that_are_not_found_are_named(damage: str, pool: Path, tmp_path: Path) -> None:
    assembly = opened(pool, tmp_path / "cache")
    recipe = kept(assembly, uneven(assembly.objective), tmp_path / "run")
    assert recipe.statistics is not None
    path = tmp_path / "run" / "batchnorm.safetensors"
    if damage == "gone":
        path.unlink()
    elif damage == "others":
        save_file({"bn1.running_mean": torch.zeros(6)}, path)
    else:
        path.write_bytes(path.read_bytes()[:-3])
    digest = recipe.statistics["hash"][:12]
    extra = {"gone": "", "others": r".*holds others \(", "truncated": ".*damaged"}[damage]
    match = rf"batchnorm\.safetensors \(content hash {digest}\), were not found in .*run{extra}.*--models"
    with pytest.raises(CheckpointError, match=match):
        saving.find_statistics(recipe, [tmp_path / "run"])


def test_fuse_refuses_other_statistics(pool: Path, tmp_path: Path) -> None:
    assembly = opened(pool, tmp_path / "cache")
    mix = uneven(assembly.objective)
    recipe = kept(assembly, mix, tmp_path)
    paths, read = assembly.objective.pool.paths, assembly.reader
    statistics: Mapping[str, Tensor] = assembly.objective.scorer.engine.statistics(mix)
    with pytest.raises(PoolError, match="found none"):
        saving.fuse(recipe, paths, read, Listener())
    other = {**statistics, "bn1.running_mean": torch.zeros(6)}
    with pytest.raises(PoolError, match="not those of the recipe"):
        saving.fuse(recipe, paths, read, Listener(), other)
    with pytest.raises(PoolError, match="expected content hash none"):
        saving.fuse(replace(recipe, statistics=None), paths, read, Listener(), statistics)
    strange = {"bn9.running_mean": torch.zeros(6)}
    with pytest.raises(PoolError, match=r"fit no tensor of the checkpoints: bn9"):
        saving.fuse(saving.keep_statistics(tmp_path, recipe, strange, 5), paths, read, Listener(), strange)


def test_recipes_with_and_without_statistics(pool: Path, tmp_path: Path) -> None:
    assembly = opened(pool, tmp_path / "cache")
    mix = uneven(assembly.objective)
    recipe = kept(assembly, mix, tmp_path)
    assert Recipe.from_json(recipe.to_json(), "here") == recipe
    average = recipe_of(assembly, mix, batchnorm="average")
    assert "statistics" not in json.loads(average.to_json())
    assert Recipe.from_json(average.to_json(), "here") == average
    with pytest.raises(MixoptError, match=r"here: the recipe lacks the reference"):
        Recipe.from_json(recipe_of(assembly, mix).to_json(), "here")
    for wrong in ({"file": "../x.safetensors", "hash": "a"}, {"file": "x", "hash": 3}, {"file": "", "hash": "a"}):
        with pytest.raises(MixoptError, match="expected a file name and a hash"):
            Recipe.from_json(replace(recipe, statistics=wrong).to_json(), "here")
    for malformed in ({"file": "x"}, ["x"], "x"):
        with pytest.raises(MixoptError, match="not a mixopt recipe"):
            Recipe.from_json(replace(recipe, statistics=malformed).to_json(), "here")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def searched(pool: Path, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    folder = tmp_path_factory.mktemp("searched")
    return mixopt.search(
        pool, out=folder / "run", cache=folder / "cache", trials=4, sampler="random", device="cpu", start="uniform"
    )


def test_a_search_saves_what_it_scored(searched: SearchResult, pool: Path) -> None:
    recipe = searched.recipe
    assert recipe.batchnorm == "recompute"
    assert recipe.statistics is not None
    assert recipe.statistics["images"] == 96
    statistics = load_file(searched.folder / "batchnorm.safetensors")
    saved = load_file(searched.folder / "model.safetensors")
    assert statistics.keys() == set(STATISTICS)
    assert all(torch.equal(saved[name], statistics[name]) for name in STATISTICS)
    check = searched.report.as_dict()["verification"]
    assert check["predictions_differing"] == 0
    assert check["difference"] == pytest.approx(0, abs=1e-5)
    assert saving.load_recipe(searched.folder / "model.safetensors") == recipe
    assert "recomputed for every mix" in (searched.folder / "run.log").read_text()


def test_build_needs_no_images(searched: SearchResult, pool: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(pool, tmp_path / "models", ignore=shutil.ignore_patterns("*.npz", "*.toml")))
    wanted = (searched.folder / "model.safetensors").read_bytes()
    away = tmp_path / "away"
    away.mkdir()
    for name in ("recipe.json", "model.safetensors", "batchnorm.safetensors"):
        shutil.copy(searched.folder / name, away / name)
    for source in ("recipe.json", "model.safetensors"):
        built = mixopt.build(away / source, tmp_path / f"{source}.safetensors", models=models, verify=True)
        assert built.read_bytes() == wanted
    shutil.move(away / "batchnorm.safetensors", models / "batchnorm.safetensors")
    assert mixopt.build(away / "recipe.json", tmp_path / "moved.safetensors", models=models).read_bytes() == wanted
    (models / "batchnorm.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"batchnorm\.safetensors .* were not found in .*away.*models"):
        mixopt.build(away / "recipe.json", tmp_path / "lost.safetensors", models=models)
    assert not (tmp_path / "lost.safetensors").exists()


def test_a_search_resumes_with_the_same_statistics(pool: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "out": tmp_path / "run", "cache": tmp_path / "cache", "sampler": "random", "device": "cpu", "start": "uniform",
    }  # fmt: skip
    mixopt.search(pool, trials=2, **options)
    again = mixopt.search(pool, trials=3, **options)
    assert again.report.as_dict()["trials"]["complete"] == 3
    for change in ({"batchnorm": "average"}, {"batch_size": 30}):
        with pytest.raises(MixoptError, match="batchnorm"):
            mixopt.search(pool, trials=3, **options, **change)


def test_a_crowned_checkpoint_keeps_its_own_statistics(tmp_path: Path) -> None:
    states = ingredients(trained(own_statistics=True))
    for state in states[1:]:
        state["head.weight"] = -state["head.weight"]
    folder = write_pool(tmp_path / "pool", states)
    found = mixopt.search(
        folder, out=tmp_path / "run", cache=tmp_path / "cache", trials=1, sampler="random", device="cpu",
        batchnorm="recompute", start="individual",
    )  # fmt: skip
    assert found.recipe.mix.support() == ("model_0",)
    assert (found.recipe.batchnorm, found.recipe.statistics) == ("recompute", None)
    assert not (found.folder / "batchnorm.safetensors").exists()
    saved, own = load_file(found.folder / "model.safetensors"), states[0]
    assert all(torch.equal(saved[name], own[name]) for name in STATISTICS)
    built = mixopt.build(found.folder / "recipe.json", tmp_path / "again.safetensors")
    assert built.read_bytes() == found.folder.joinpath("model.safetensors").read_bytes()


def test_images_that_racing_could_spare_include_those_for_statistics(searched: SearchResult) -> None:
    race = searched.report.as_dict()["race"]
    assert race["given_up"] == 0
    assert race["images"] == race["unraced_images"] > 4 * searched.report.tuning
