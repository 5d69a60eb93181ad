"""`mixopt compare`: every recipe in one table, the best saved, failures told, all of it replayed for nothing."""

from __future__ import annotations

import functools
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mixopt
from mixopt import Listener, RunError, ScoreError, SpecError, load_spec, open_objective
from mixopt.comparison.requests import default_rows, requests_of
from mixopt.comparison.running import run_requests
from mixopt.families.open_clip import OpenClip
from mixopt.runs.compare import CompareResult
from mixopt.scoring.engine import Engine
from mixopt.scoring.evaluator import Evaluator
from mixopt.scoring.objective import Objective
from mixopt.stages.plan import LEARNED
from tests.listening import Recorder

FEW = ("individual", "uniform", "greedy", "wise_ft:greedy", "model_stock", "greedy_ensemble")


@pytest.fixture(scope="module")
def finished(clip_pool_template: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CompareResult, Path]:
    """A comparison with every row there is, and its cache; tests here only read it."""
    folder = tmp_path_factory.mktemp("compare")
    heard = Recorder()
    result = mixopt.compare(
        clip_pool_template,
        out=folder / "run",
        cache=folder / "cache",
        device="cpu",
        listener=heard.listener,
    )
    (folder / "said").write_text("\n".join(heard.told))
    return result, folder


def rows_of(result: CompareResult) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result.report.as_dict()["methods"]}


def test_every_method_has_its_row(finished: tuple[CompareResult, Path]) -> None:
    result, folder = finished
    assert list(rows_of(result)) == ["base", *default_rows(4)]
    assert result.failed == {}
    assert json.loads((folder / "run" / "report.json").read_text()) == result.report.as_dict()
    for row in result.report.as_dict()["methods"]:
        assert set(row["test"]) == {"test", "shift"}
        for split in ("validation", "test", "shift"):
            low, high = row["interval"][split]
            assert low <= row["metrics"][split]["accuracy"] <= high
        assert set(row["mcnemar_p"]) == {"individual", "greedy"} - {row["name"]}
        assert row["images"] == 0 or row["evaluations"] > 0
        assert row["seconds"] >= 0


def test_the_best_row_is_saved_and_is_no_ensemble(finished: tuple[CompareResult, Path], tmp_path: Path) -> None:
    result, folder = finished
    best = result.report.as_dict()["best"]
    row = rows_of(result)[best]
    singles = [each for each in result.report.as_dict()["methods"] if each["models"] == 1 and each["name"] != "base"]
    assert row in singles
    assert result.report.tuning == 96 - round(0.2 * 96)
    assert f"({best})" in (folder / "said").read_text()
    assert result.recipe.method == best
    assert result.report.as_dict()["verification"]["difference"] == 0
    built = mixopt.build(folder / "run" / "recipe.json", tmp_path / "again.safetensors", verify=True)
    assert built.read_bytes() == (folder / "run" / "model.safetensors").read_bytes()


def test_costs_are_those_of_the_recipes(finished: tuple[CompareResult, Path]) -> None:
    rows = rows_of(finished[0])
    evaluations = {name: row["evaluations"] for name, row in rows.items()}
    assert evaluations["individual"] == 4
    assert evaluations["uniform"] == evaluations["model_stock"] == evaluations["ensemble"] == 0
    assert evaluations["wise_ft:alpha=0.5"] == 4, "the individuals, to find the best of them"
    assert evaluations["greedy"] == evaluations["greedy_ensemble"] == 7
    assert evaluations["wise_ft"] == 4 + 10
    assert (evaluations["learned"], evaluations["learned_by_layer"]) == (3, 5)
    assert rows["learned"]["gradient_images"] == rows["learned"]["images"] == 3 * 77, "four fifths steer"
    assert rows["ensemble"]["models"] == 4
    assert rows["uniform"]["models"] == 1


def test_the_whole_alpha_curve_is_kept_on_every_split(finished: tuple[CompareResult, Path]) -> None:
    rows = rows_of(finished[0])
    for name, end in (("wise_ft", "individual"), ("wise_ft:greedy", "greedy"), ("wise_ft:uniform", "uniform")):
        sweep = rows[name]["sweep"]
        assert [point["x"] for point in sweep] == pytest.approx(np.linspace(0, 1, 11))
        for point, row in ((sweep[0], rows["base"]), (sweep[-1], rows[end])):
            assert point["search"] == row["search"]
            assert point["test"] == row["test"]
        chosen = rows[name]["notes"]["alpha"]
        assert next(point for point in sweep if point["x"] == chosen)["test"] == rows[name]["test"]


def test_run_again_it_computes_nothing_and_says_the_same(
    finished: tuple[CompareResult, Path], clip_pool_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result, folder = finished

    def fail(*_: Any) -> None:
        raise AssertionError("computed again")

    for name in ("fuse", "logits", "slope"):
        monkeypatch.setattr(Engine, name, fail)
    again = mixopt.compare(clip_pool_template, out=folder / "run", cache=folder / "cache", device="cpu")
    for before, after in zip(result.report.as_dict()["methods"], again.report.as_dict()["methods"], strict=True):
        volatile = ("computed", "seconds", "peak_memory")
        assert {k: v for k, v in before.items() if k not in volatile} == {
            k: v for k, v in after.items() if k not in volatile
        }
    assert again.recipe == result.recipe


def test_methods_are_those_asked_for(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    result = mixopt.compare(clip_pool_template, methods="uniform, greedy:strict,model_stock:top=2", **run_options)
    assert list(rows_of(result)) == ["base", "uniform", "greedy:strict", "model_stock:top=2"]
    assert rows_of(result)["uniform"]["mcnemar_p"] == {}


def test_soups_of_soups(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    result = mixopt.compare(
        clip_pool_template,
        from_=["individual:best", "uniform", "greedy", "wise_ft"],
        methods=["greedy", "learned:affine"],
        **run_options,
    )
    name = "greedy:individual+uniform+greedy+wise_ft"
    rows = rows_of(result)
    assert {"individual", "uniform", "greedy", "wise_ft", name} < set(rows)
    assert rows[name]["search"] >= max(rows[each]["search"] for each in ("individual", "uniform", "greedy", "wise_ft"))
    assert result.recipe.mix.columns == ("model_0", "model_1", "model_2", "model_3", "base")


def test_a_method_that_fails_leaves_a_row(clip_pool: Path, run_options: dict[str, Any]) -> None:
    text = (clip_pool / "pool.toml").read_text().replace('base = "base.safetensors"\n', "")
    (clip_pool / "pool.toml").write_text(text)
    heard = Recorder()
    result = mixopt.compare(clip_pool, methods=FEW, listener=heard.listener, **run_options)
    assert set(result.failed) == {"wise_ft:greedy", "model_stock"}
    row = rows_of(result)["model_stock"]
    assert row["search"] is None
    assert "it needs the base" in row["error"]
    assert rows_of(result)["greedy"]["search"] > 0
    assert any("model_stock failed" in text for text in heard.warnings)
    assert "base" not in rows_of(result)


def test_nothing_but_failures_or_ensembles_is_an_error(clip_pool: Path, run_options: dict[str, Any]) -> None:
    text = (clip_pool / "pool.toml").read_text().replace('base = "base.safetensors"\n', "")
    (clip_pool / "pool.toml").write_text(text)
    with pytest.raises(RunError, match=r"no method could choose a mix, 2 problems:\n.*model_stock"):
        mixopt.compare(clip_pool, methods="model_stock,task_arithmetic", **run_options)
    with pytest.raises(SpecError, match="only ensembles, and no mix to save"):
        mixopt.compare(clip_pool, methods="ensemble", **run_options)


def test_wrong_rows_are_told_before_any_work(
    clip_pool_template: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("work was done")

    monkeypatch.setattr(Engine, "fuse", fail)
    with pytest.raises(SpecError, match="did you mean 'uniform'"):
        mixopt.compare(clip_pool_template, methods="unifrm", **run_options)
    assert not run_options["out"].exists()


def test_a_search_is_not_overwritten(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    mixopt.search(clip_pool_template, trials=2, **run_options)
    before = (run_options["out"] / "report.json").read_bytes()
    with pytest.raises(RunError, match=r"holds a search.*--out .*-compare"):
        mixopt.compare(clip_pool_template, methods="uniform", **run_options)
    assert (run_options["out"] / "report.json").read_bytes() == before


def test_a_comparison_may_be_followed_by_another(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    mixopt.compare(clip_pool_template, methods="uniform", **run_options)
    result = mixopt.compare(clip_pool_template, methods="individual", **run_options)
    assert result.recipe.method == "individual"
    with pytest.raises(RunError, match=r"holds a comparison, .* --out .*-search"):
        mixopt.search(clip_pool_template, trials=2, **run_options)
    before = (run_options["out"] / "report.json").read_bytes()
    with pytest.raises(RunError, match="holds a comparison with another metric"):
        mixopt.compare(clip_pool_template, methods="individual", metric="nll", **run_options)
    assert (run_options["out"] / "report.json").read_bytes() == before


def test_without_a_folder_named_search_and_comparison_lie_side_by_side(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options: dict[str, Any] = {"cache": tmp_path / "cache", "device": "cpu"}
    assert mixopt.search(clip_pool_template, trials=2, **options).folder == Path("runs/pool")
    for _ in range(2):
        compared = mixopt.compare(clip_pool_template, methods="uniform", **options)
        assert compared.folder == Path("runs/pool-compare")
    assert mixopt.search(clip_pool_template, trials=3, **options).folder == Path("runs/pool")


def test_other_metrics_decide_and_have_intervals(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    result = mixopt.compare(clip_pool_template, metric="nll", methods="individual,uniform,greedy", **run_options)
    rows = {name: row for name, row in rows_of(result).items() if name != "base"}
    assert rows[result.report.as_dict()["best"]]["search"] == min(row["search"] for row in rows.values())
    for row in rows.values():
        low, high = row["interval"]["validation"]
        assert low < row["search"] < high
        assert row["accuracy_interval"]["validation"] != row["interval"]["validation"]


# The search over mixes


def test_a_search_may_start_from_other_mixes(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    sources = ("individual", "uniform", "wise_ft", "model_1")
    run_options |= {"confirm": 0, "signal": "metric"}
    result = mixopt.search(clip_pool_template, trials=6, from_=sources, groups="2", **run_options)
    rows = {row["name"]: row for row in result.report.as_dict()["methods"]}
    assert list(rows) == ["base", "individual", "uniform", "greedy", LEARNED, "wise_ft", "search"]
    assert result.report.as_dict()["space"] == {
        "kind": "composed",
        "dims": 8,
        "labels": [f"depth.{half}/{name}" for half in (0, 1) for name in sources],
    }
    assert rows["search"]["search"] >= max(rows[name]["search"] for name in ("individual", "uniform", "wise_ft"))
    assert rows["search"]["evaluations"] >= 6 + 4
    assert result.recipe.mix.columns == ("model_0", "model_1", "model_2", "model_3", "base")
    again = mixopt.search(clip_pool_template, trials=6, from_=sources, groups="2", **run_options)
    assert again.recipe == result.recipe
    with pytest.raises(RunError, match=r"from was \[.*\], now \["):
        mixopt.search(clip_pool_template, trials=6, from_=("individual", "uniform"), groups="2", **run_options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"from_": ("uniform",)}, "--from uniform: a search over mixes needs at least two"),
        ({"from_": ("uniform", "gredy")}, "unknown row or checkpoint 'gredy'"),
        ({"from_": ("uniform", "ensemble")}, "--from ensemble: an ensemble is no mix"),
        ({"from_": ("uniform", "greedy"), "ingredients": 2}, "--ingredients 2: with --from"),
        (
            {"from_": ("uniform", "greedy"), "space": "depth"},
            "--space depth: with --from, expected simplex or residual",
        ),
        ({"start": "wise_ft"}, "--start: unknown start 'wise_ft'"),
        (
            {"from_": ("uniform", "individual"), "start": "greedy"},
            "--start greedy: with --from, expected best or one",
        ),
    ],
)
def test_sources_of_a_search_that_cannot_be(
    options: dict[str, Any],
    says: str,
    clip_pool_template: Path,
    run_options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("something was scored")

    monkeypatch.setattr(Engine, "fuse", fail)
    with pytest.raises(SpecError, match=says):
        mixopt.search(clip_pool_template, trials=2, **options, **run_options)


@pytest.mark.parametrize(
    ("sources", "start", "evaluations"),
    [
        (("uniform", "model_stock"), "best", 2),
        (("base", "uniform"), "best", 2),
        (("uniform", "model_stock"), "model_stock", 1),
        (("greedy", "uniform"), "best", 7 + 1),
    ],
)
def test_a_search_over_mixes_counts_what_led_to_it(
    sources: tuple[str, ...], start: str, evaluations: int, clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    result = mixopt.search(clip_pool_template, trials=1, from_=sources, start=start, **run_options)
    (row,) = (row for row in result.report.as_dict()["methods"] if row["name"] == "search")
    assert row["evaluations"] == evaluations
    assert result.report.as_dict()["best"]


def test_the_dimensions_of_a_search_over_mixes_follow_their_number(
    clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    result = mixopt.search(clip_pool_template, trials=1, from_=("uniform", "model_stock"), **run_options)
    assert result.report.as_dict()["space"]["dims"] == 4 * 2, "four blocks, two mixes"


def test_a_study_of_another_version_is_refused_in_one_line(
    clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    mixopt.search(clip_pool_template, trials=2, **run_options)
    journal = run_options["out"] / "study.journal"
    text = re.sub(',"sum":"[0-9a-f]+"', "", journal.read_text())  # which that version did not write
    assert '"from"' not in text, "what was not asked for is not part of what a study keeps to"
    journal.write_text(text.replace('"identity"', '"facts"'))
    with pytest.raises(RunError, match="holds a study of another version of mixopt; choose another folder with --out"):
        mixopt.search(clip_pool_template, trials=2, **run_options)


# Rows that cannot be scored


def test_a_final_mix_that_is_not_finite_is_a_row_that_failed(
    clip_pool_template: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Objective.score

    def score(self: Objective, mix: Any, split: str = "validation") -> Any:
        if split == "test" and len(mix.support()) == 4:
            raise ScoreError("3 of 96 losses on test are not finite")
        return real(self, mix, split)

    monkeypatch.setattr(Objective, "score", score)
    heard = Recorder()
    listener = heard.listener
    result = mixopt.compare(clip_pool_template, methods="individual,uniform,wise_ft", listener=listener, **run_options)
    assert result.failed == {"uniform": "3 of 96 losses on test are not finite"}
    assert rows_of(result)["uniform"]["error"].startswith("3 of 96")
    assert result.report.as_dict()["best"] in ("individual", "wise_ft")
    assert any("uniform failed" in text for text in heard.warnings)


@pytest.mark.parametrize("kind", ["no_grad", "inference_mode"])
def test_a_predict_without_gradients_fails_the_learned_rows_alone(
    kind: str, clip_pool_template: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OpenClip.predict

    def predict(self: OpenClip, module: Any, fixed: frozenset[str]) -> Any:
        inner = real(self, module, fixed)

        def logits(images: Any) -> Any:
            with getattr(torch, kind)():
                return inner(images)

        return logits

    monkeypatch.setattr(OpenClip, "predict", predict)
    result = mixopt.compare(clip_pool_template, methods="uniform,learned,learned_by_layer", **run_options)
    assert set(result.failed) == {"learned", "learned_by_layer"}
    assert all("logits without gradients" in reason for reason in result.failed.values())


def test_running_out_of_memory_fails_one_row(
    clip_pool_template: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr(Engine, "slope", fail)
    result = mixopt.compare(clip_pool_template, methods="uniform,learned", **run_options)
    assert "out of memory (tried to allocate 80 GiB); use a smaller --batch-size" in result.failed["learned"]


@pytest.mark.parametrize("metric", ["accuracy", "nll", "balanced_accuracy"])
def test_one_sample_is_enough_for_a_report(metric: str, clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    result = mixopt.compare(clip_pool_template, limit=1, metric=metric, methods="individual,uniform", **run_options)
    low, high = rows_of(result)["uniform"]["interval"]["validation"]
    assert low <= rows_of(result)["uniform"]["search"] <= high


def test_a_refused_search_leaves_a_comparisons_folder_as_it_was(
    clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    mixopt.compare(clip_pool_template, methods="uniform", **run_options)
    with pytest.raises(RunError, match="holds a comparison"):
        mixopt.search(clip_pool_template, trials=2, **run_options)
    assert not (run_options["out"] / "study.journal").exists()
    mixopt.compare(clip_pool_template, methods="uniform", **run_options)


def test_an_older_searchs_report_is_not_overwritten(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    folder = run_options["out"]
    folder.mkdir()
    (folder / "run.toml").write_text("")
    (folder / "report.json").write_text(json.dumps({"metric": "accuracy", "methods": []}))
    with pytest.raises(RunError, match="holds a search"):
        mixopt.compare(clip_pool_template, methods="uniform", **run_options)


def test_seconds_include_the_own_work_of_sources(
    clip_pool_template: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mixopt.methods import model_stock

    real = model_stock.choose

    @functools.wraps(real)
    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return real(*arguments, **options)

    monkeypatch.setattr(model_stock, "choose", slow)
    rows = rows_of(mixopt.compare(clip_pool_template, methods="uniform:model_stock,model_stock", **run_options))
    assert rows["uniform:model_stock"]["seconds"] >= 0.5
    assert rows["model_stock"]["seconds"] >= 0.5


def test_images_of_a_greedy_ensemble_are_those_that_ran(
    clip_pool_template: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = [0]
    real = Evaluator._forward

    def counting(self: Evaluator, *arguments: Any) -> Any:
        for item in real(self, *arguments):
            if self.split.name == "validation":
                ran[0] += len(item[1])
            yield item

    monkeypatch.setattr(Evaluator, "_forward", counting)
    spec = load_spec({"models": clip_pool_template, **run_options})
    objective = open_objective(spec)
    ran[0] = 0
    found = run_requests(
        objective,
        requests_of(["greedy_ensemble"], objective.pool.columns),
        seed=0,
        device=torch.device("cpu"),
        listener=Listener(),
    )
    assert found["greedy_ensemble"].tally.images == ran[0]
