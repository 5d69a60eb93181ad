"""Rows of a comparison: their names, their order, what they take from each other, and what happens when one fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixopt import Listener, RunError, SpecError, combine, load_spec, open_objective
from mixopt.comparison.requests import default_rows, parse, requests_of, source_names
from mixopt.comparison.running import ingredient_mixes, run_requests
from mixopt.methods import greedy
from mixopt.scoring.objective import Objective
from tests.counting import count_fused
from tests.listening import Recorder

CHECKPOINTS = ("model_0", "model_1", "model_2", "model_3", "base")


@pytest.fixture
def objective(clip_pool_template: Path, tmp_path: Path) -> Objective:
    return open_objective(load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu"}))


def run(objective: Objective, *texts: str, sources: tuple[str, ...] = (), listener: Listener | None = None) -> Any:
    requests = requests_of(texts, objective.pool.columns, sources)
    return run_requests(objective, requests, seed=0, device=torch.device("cpu"), listener=listener or Listener())


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("greedy", "greedy", {}),
        ("greedy:at-least", "greedy", {"rule": "at-least"}),
        ("greedy:strict", "greedy:strict", {"rule": "strict"}),
        ("greedy:rule=strict", "greedy:strict", {"rule": "strict"}),
        ("greedy:random:strict", "greedy:strict:random", {"rule": "strict", "order": "random"}),
        ("individual:best", "individual", {}),
        ("wise_ft:alpha=0.5", "wise_ft:alpha=0.5", {"alpha": 0.5}),
        ("wise_ft:alphas=0/0.25/1", "wise_ft:alphas=0/0.25/1", {"alphas": (0.0, 0.25, 1.0)}),
        ("learned:affine:lr=0.3", "learned:affine:lr=0.3", {"form": "affine", "lr": 0.3}),
        ("learned_by_layer:groups=block", "learned_by_layer:groups=block", {"groups": "block"}),
        ("manifold:phase2=true", "manifold:phase2=true", {"phase2": True}),
        ("uniform:top=2", "uniform:top=2", {}),
        ("greedy:random:seed=3", "greedy:random:seed=3", {"order": "random"}),
        ("greedy:patience=3:ranked", "greedy:ranked:patience=3", {"order": "ranked", "patience": 3}),
        ("wise_ft:few", "wise_ft:few", {"points": "few"}),
    ],
)
def test_a_rows_text_becomes_options_and_one_name(text: str, name: str, options: dict[str, Any]) -> None:
    found = parse(text, CHECKPOINTS, (), {})
    assert (found.name, found.options) == (name, options)
    assert parse(name, CHECKPOINTS, (), {}) == parse(name, CHECKPOINTS, (), {})
    assert parse(name, CHECKPOINTS, (), {}).name == name, "a row's name asks for that row"


def test_sources_are_rows_or_checkpoints() -> None:
    assert parse("wise_ft:greedy", CHECKPOINTS, (), {}).sources == ("greedy",)
    assert parse("wise_ft:model_2", CHECKPOINTS, (), {}).sources == ("model_2",)
    found = parse("greedy:uniform+wise_ft+base:strict", CHECKPOINTS, ("learned",), {})
    assert found.sources == ("uniform", "wise_ft", "base")
    assert found.name == "greedy:uniform+wise_ft+base:strict"
    assert parse("greedy", CHECKPOINTS, ("individual", "uniform"), {}).name == "greedy:individual+uniform"


def test_the_runs_own_default_needs_no_name() -> None:
    defaults = {"greedy": {"rule": "strict"}}
    assert parse("greedy", CHECKPOINTS, (), defaults).options == {"rule": "strict"}
    assert parse("greedy:strict", CHECKPOINTS, (), defaults).name == "greedy"
    other = parse("greedy:at-least", CHECKPOINTS, (), defaults)
    assert (other.name, other.options) == ("greedy:at-least", {"rule": "at-least"})


def test_what_a_row_needs_runs_before_it_and_once() -> None:
    found = list(requests_of(["wise_ft:greedy", "greedy", "uniform:greedy+learned"], CHECKPOINTS))
    assert found == ["greedy", "wise_ft:greedy", "learned", "uniform:greedy+learned"]
    found = list(requests_of(["greedy"], CHECKPOINTS, ["individual:best", "wise_ft:greedy", "model_1"]))
    assert found == ["individual", "greedy", "wise_ft:greedy", "greedy:individual+(wise_ft:greedy)+model_1"]


def test_a_checkpoint_called_like_a_method() -> None:
    with pytest.raises(SpecError, match="greedy: a checkpoint is called like a method; rename its file"):
        requests_of(["uniform"], ["greedy", "model_1"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gredy", "unknown method 'gredy'; did you mean 'greedy'"),
        ("greedy:strickt", "unknown option, row or checkpoint 'strickt'; did you mean 'strict'"),
        ("wise_ft:beta=1", "unknown option 'beta'"),
        ("wise_ft:alpha=half", "alpha=half: expected a valid number"),
        ("greedy:rule=sometimes", "rule=sometimes: expected 'at-least' or 'strict'"),
        ("uniform:top=0", "top=0: expected a whole number, 1 or more"),
        ("uniform:greedy+greedy", "a row stands there twice"),
        ("greedy:rule", "option rule needs a value: rule=..."),
        ("wise_ft:greedy:uniform", "two parts name what to mix, greedy and uniform; join them with +"),
    ],
)
def test_a_text_that_means_nothing(text: str, says: str) -> None:
    with pytest.raises(SpecError, match="--methods") as caught:
        requests_of([text], CHECKPOINTS)
    assert says in str(caught.value)


def test_all_wrong_texts_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        requests_of(["gredy", "uniform", "wise:x"], CHECKPOINTS, ["model_9"])
    wanted = ("3 problems", "--methods gredy", "--methods wise:x", "--from model_9: unknown row or checkpoint")
    assert all(part in str(caught.value) for part in wanted)


@pytest.mark.parametrize("ingredients", [2, 3, 4, 16])
def test_default_rows_can_all_be_asked_for(ingredients: int) -> None:
    columns = [f"model_{number}" for number in range(ingredients)]
    rows = default_rows(ingredients)
    assert list(requests_of(rows, columns)) == list(rows), "canonical names, in an order in which they can run"


def test_every_method_has_a_default_row() -> None:
    from mixopt.comparison.ensembles import ENSEMBLES
    from mixopt.methods import method_names

    assert {row.split(":")[0] for row in default_rows(8)} == {*method_names(), *ENSEMBLES}


def test_a_rows_evaluations_include_those_of_its_sources(objective: Objective) -> None:
    found = run(objective, "greedy", "wise_ft:greedy", "uniform", "uniform:top=2", "uniform:greedy+wise_ft:seed=1")
    assert found["greedy"].tally.evaluations == 7
    # eleven more mixes along the path, of which one is the greedy soup itself
    assert found["wise_ft:greedy"].tally.evaluations == 7 + 10
    assert found["uniform"].tally.evaluations == 0
    assert found["uniform:top=2"].tally.evaluations == 4
    assert found["uniform:greedy+wise_ft:seed=1"].tally.evaluations >= 7 + 9


def test_evaluations_are_the_same_when_all_is_cached(clip_pool_template: Path, tmp_path: Path) -> None:
    spec = load_spec({"models": clip_pool_template, "cache": tmp_path, "device": "cpu"})
    rows = ("greedy", "wise_ft", "greedy_ensemble", "learned")
    first, second = (run(open_objective(spec), *rows) for _ in range(2))
    for name in rows:
        assert first[name].tally.evaluations == second[name].tally.evaluations > 0
        assert not second[name].tally.runs
        first_scoring, again = (each[name].tally.seconds - each[name].tally.own[name] for each in (first, second))
        assert again == pytest.approx(first_scoring)
        assert second[name].peak_memory is None, "nothing was computed"
    assert first["greedy"].peak_memory is None or first["greedy"].peak_memory > 1e6


def test_top_takes_the_best(objective: Objective) -> None:
    found = run(objective, "individual", "uniform:top=2", "uniform:top=1", "uniform:top=4", "uniform")
    values = {name: objective.score(mix).value for name, mix in ingredient_mixes(objective).items()}
    best = sorted(values, key=lambda name: -values[name])[:2]
    assert set(found["uniform:top=2"].mix.support()) == set(best)
    assert found["uniform:top=1"].mix == found["individual"].mix
    assert found["uniform:top=4"].mix.coefficients == pytest.approx(found["uniform"].mix.coefficients)


def test_a_method_over_other_rows_is_one_mix_over_the_checkpoints(objective: Objective) -> None:
    found = run(objective, "greedy", sources=("individual", "uniform", "model_stock"))
    name = "greedy:individual+uniform+model_stock"
    columns = {source: found[source].mix for source in ("individual", "uniform", "model_stock")}
    expected = greedy.choose(objective, columns, seed=0).mix
    assert found[name].mix == expected
    assert found[name].mix.columns == objective.pool.columns


def test_a_checkpoint_may_be_a_source(objective: Objective) -> None:
    found = run(objective, "wise_ft:model_2:alpha=0.5", "uniform:model_1+base")
    assert found["wise_ft:model_2:alpha=0.5"].mix.coefficients[0] == pytest.approx([0, 0, 0.5, 0, 0.5])
    assert found["uniform:model_1+base"].mix.coefficients[0] == pytest.approx([0, 0.5, 0, 0, 0.5])


def test_one_that_fails_leaves_its_reason_and_the_others_run(clip_pool: Path, tmp_path: Path) -> None:
    (clip_pool / "base.safetensors").unlink()
    text = (clip_pool / "pool.toml").read_text().replace('base = "base.safetensors"\n', "")
    (clip_pool / "pool.toml").write_text(text)
    objective = open_objective(load_spec({"models": clip_pool, "cache": tmp_path, "device": "cpu"}))
    heard = Recorder()
    found = run(
        objective,
        "model_stock",
        "uniform",
        "uniform:model_stock+greedy",
        "uniform:ensemble",
        "uniform:top=9",
        listener=heard.listener,
    )
    assert "needs the base" in str(found["model_stock"].error)
    assert found["model_stock"].mix is None
    assert found["uniform"].error is None
    assert "the mix of model_stock, which failed" in str(found["uniform:model_stock+greedy"].error)
    assert "the mix of ensemble, which is an ensemble and no mix" in str(found["uniform:ensemble"].error)
    assert "top=9: there are only 4 to choose from" in str(found["uniform:top=9"].error)
    assert len(heard.warnings) == 4


def test_a_cache_that_cannot_be_written_ends_the_run(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RunError("disk full")

    monkeypatch.setattr(objective.scorer.cache, "put", fail)
    with pytest.raises(RunError, match="disk full"):
        run(objective, "uniform", "greedy")


def test_random_orders_follow_the_seed(objective: Objective) -> None:
    curves = {}
    for seed in range(6):
        found = run(objective, f"greedy:random:seed={seed}")
        (entry,) = found.values()
        curves[seed] = [step["name"] for step in entry.choice.curves["greedy"]]
    assert len({tuple(order) for order in curves.values()}) > 1
    again = run(objective, "greedy:random:seed=2")
    assert [step["name"] for step in again["greedy:random:seed=2"].choice.curves["greedy"]] == curves[2]


def test_names_of_sources() -> None:
    assert source_names(["individual:best", "model_0", "greedy:strict"], CHECKPOINTS, {}) == (
        "individual",
        "model_0",
        "greedy:strict",
    )


def test_ensembles_average_logits(objective: Objective) -> None:
    mixes = list(ingredient_mixes(objective).values())
    evaluator = objective.evaluators["test"]
    total: Any = 0
    for mix in mixes:
        objective.scorer.engine.builder.apply(mix)
        total = total + evaluator.logits(objective.scorer.engine.predict())
    expected = (total / len(mixes)).argmax(dim=1).numpy()
    score = objective.score_ensemble(mixes, "test")
    assert np.array_equal(score.outcomes.predicted, expected)
    assert objective.score_ensemble(list(reversed(mixes)), "test").cached, "in any order"
    alone = objective.score_ensemble(mixes[:1], "test").outcomes
    assert np.array_equal(alone.predicted, objective.score(mixes[0], "test").outcomes.predicted)


def test_one_more_member_costs_one_more_forward_pass(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(objective, "individual")
    assert found
    fused = count_fused(monkeypatch)
    entry = run(objective, "greedy_ensemble")["greedy_ensemble"]
    assert fused[0] <= 1 + 3, "the first member once, then one for each candidate"
    assert entry.tally.evaluations == 7
    assert entry.mix is None


def test_greedy_ensemble_is_the_recipe_with_ensembles(objective: Objective) -> None:
    mixes = ingredient_mixes(objective)
    values = {name: objective.score(mix).value for name, mix in mixes.items()}
    order = sorted(mixes, key=lambda name: -values[name])

    def together(names: list[str]) -> float:
        return objective.score_ensemble([mixes[name] for name in names]).value

    members = order[:1]
    for name in order[1:]:
        if together([*members, name]) >= together(members):
            members = [*members, name]
    entry = run(objective, "greedy_ensemble")["greedy_ensemble"]
    assert list(entry.choice.members) == members


def test_equal_members_are_the_model_itself(objective: Objective) -> None:
    mix = combine(list(ingredient_mixes(objective).values()), [0.25] * 4)
    twice = objective.score_ensemble([mix, mix]).outcomes
    assert np.array_equal(twice.predicted, objective.score(mix).outcomes.predicted)
    assert twice.losses == pytest.approx(objective.score(mix).outcomes.losses, abs=1e-6)
