"""A user's own objective in place of the validation split."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import mixopt
from mixopt import ScoreError, SpecError, load_spec, open_objective
from mixopt.errors import DataError, MixoptError
from mixopt.runs.search import SearchResult
from tests import own_functions
from tests.conftest import make_images
from tests.tiny_family import Mlp

MODULE = "tests.own_functions"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tunings of one small network, and a test split."""
    folder = tmp_path_factory.mktemp("own") / "pool"
    folder.mkdir()
    torch.manual_seed(0)
    base = Mlp(4).state_dict()
    for number in range(4):
        torch.manual_seed(number + 1)
        tuned = {
            name: tensor + 0.1 * torch.randn_like(tensor) if tensor.is_floating_point() else tensor
            for name, tensor in base.items()
        }
        save_file(tuned, folder / f"model_{number}.safetensors")
    save_file(base, folder / "base.safetensors")
    np.savez(folder / "test.npz", **make_images(40, seed=1))
    (folder / "pool.toml").write_text(
        'family = "tests.tiny_family:plain"\nbase = "base.safetensors"\n'
        'classnames = ["red", "green", "blue", "grey"]\n'
        f'[data]\nsearch = "{MODULE}:number"\n[data.test]\ntest = "test.npz"\nown = "{MODULE}:several"\n'
    )
    return folder


def options_of(folder: Path, **more: Any) -> dict[str, Any]:
    return {"cache": folder / "cache", "out": folder / "run", "device": "cpu", **more}


def searched(pool: Path, folder: Path, function: str, **more: Any) -> SearchResult:
    data = {"validation": Path(f"{MODULE}:{function}"), "test": {"test": pool / "test.npz"}}
    return mixopt.search(pool, data=data, trials=6, start="greedy", **options_of(folder, **more))


def value_of(file: Path, function: str) -> Any:
    module = Mlp(4)
    module.load_state_dict(load_file(file))
    with torch.no_grad():
        return getattr(own_functions, function)(module.eval(), torch.device("cpu"))


@pytest.mark.usefixtures("pages")
@pytest.mark.parametrize("function", ["number", "each"])
def test_page_of_an_objective_of_ones_own(pool: Path, tmp_path: Path, function: str) -> None:
    page = (searched(pool, tmp_path, function, page="full").folder / "report.html").read_text()
    assert "score (higher is better) of a search" in page
    assert ("(no interval)" in page) is (function == "number")
    assert "Half-way, by accuracy" not in page
    assert "Half-way, by score" in page


def test_one_number_drives_a_search(pool: Path, tmp_path: Path) -> None:
    result = mixopt.search(pool, trials=6, space="simplex", **options_of(tmp_path))
    report = result.report
    assert report.metric == "score"
    row = report.row("search")
    assert row.search == pytest.approx(value_of(result.folder / "model.safetensors", "number"), abs=1e-6)
    assert row.search >= report.row("greedy").search >= report.row("individual").search
    assert set(row.test) == {"test", "own"}
    assert report.metric_of("test") == "accuracy"
    assert row.metrics["own"] == pytest.approx(value_of(result.folder / "model.safetensors", "several"), abs=1e-6)
    assert "validation" not in row.interval, "one number has no interval"
    assert set(row.mcnemar_p["greedy"]) == {"test"}, "and no paired test"
    (learned,) = report.failures
    assert "gives no gradients" in learned.error
    assert report.tuning == 1
    before = own_functions.CALLS[0]
    again = mixopt.search(pool, trials=6, space="simplex", **options_of(tmp_path))
    assert again.report.row("search").metrics == row.metrics
    # Called once for each of the two functions to see what it gives, and for the saved file: all else is cached.
    assert own_functions.CALLS[0] - before == 4


def test_scores_of_samples_keep_intervals_and_a_last_choice(pool: Path, tmp_path: Path) -> None:
    result = searched(pool, tmp_path, "each", confirm=0.25)
    scores = value_of(result.folder / "model.safetensors", "each").numpy()
    row = result.report.row("search")
    assert row.search == pytest.approx(scores.mean(), abs=1e-6)
    low, high = row.interval["validation"]
    assert low < row.search < high
    assert result.report.tuning == 45
    assert result.report.splits["validation"].samples == 60
    objective = open_objective(load_spec({"models": pool, "data": {"search": f"{MODULE}:each"}, "cache": tmp_path}))
    mix = result.recipe.mix
    part, whole = objective.score(mix), objective.whole().score(mix)
    assert len(part.outcomes) == 48
    assert np.array_equal(part.outcomes.losses, whole.outcomes.losses[:48])
    assert np.sort(-whole.outcomes.losses) == pytest.approx(np.sort(scores), abs=1e-5)


def test_the_first_of_several_numbers_drives_unless_another_is_named(pool: Path, tmp_path: Path) -> None:
    first = searched(pool, tmp_path / "first", "several").report
    assert first.metric == "likelihood"
    assert set(first.row("search").metrics["validation"]) == {"likelihood", "right"}
    other = searched(pool, tmp_path / "other", "several", metric="right").report
    assert other.metric == "right"
    assert other.row("individual").search == max(
        value_of(pool / f"model_{number}.safetensors", "several")["right"] for number in range(4)
    )
    with pytest.raises(SpecError, match=r"--metric left: tests.own_functions:several gives likelihood, right"):
        searched(pool, tmp_path / "none", "several", metric="left")


def test_comparison_runs_what_can_run(pool: Path, tmp_path: Path) -> None:
    rows = "individual,uniform,greedy,wise_ft,model_stock,learned,ensemble"
    result = mixopt.compare(pool, methods=rows, **options_of(tmp_path))
    assert set(result.failed) == {"learned", "ensemble"}
    assert "gives no gradients" in result.failed["learned"]
    assert "gives no logits" in result.failed["ensemble"]
    assert {row.name for row in result.report.made} >= {"individual", "uniform", "greedy", "wise_ft", "model_stock"}
    card = (result.folder / "README.md").read_text()
    assert "| individual |" in card


def test_evaluate_by_a_function(pool: Path, tmp_path: Path) -> None:
    data = {"validation": Path(f"{MODULE}:several"), "test": {"test": pool / "test.npz"}}
    found = mixopt.evaluate(pool / "model_1.safetensors", models=pool, data=data, cache=tmp_path, device="cpu")
    assert found["splits"][f"{MODULE}:several"]["metrics"] == pytest.approx(
        value_of(pool / "model_1.safetensors", "several"), abs=1e-6
    )
    assert set(found["splits"]["test"]["metrics"]) >= {"accuracy", "nll"}
    json.dumps(found)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("not_a_number", "1 of 1 scores are not finite"),
        ("a_text", r"expected \[n\] scores, a number, or \{name: number\}, found a str"),
        ("a_matrix", r"found shape \[2, 2\]"),
        ("nothing", "gave no number at all"),
    ],
)
def test_what_is_no_score_is_refused(pool: Path, tmp_path: Path, function: str, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        searched(pool, tmp_path, function)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": {"validation": Path("tests.own_functions:missing")}}, "--data tests.own_functions:missing: cannot"),
        ({"shifts": "synthetic"}, "--shifts: the validation split is scored by your own function"),
        ({"compile": True}, "--compile: your own function"),
    ],
)
def test_what_goes_with_no_function_is_refused(
    pool: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(MixoptError, match=message):
        mixopt.search(pool, trials=2, **options_of(tmp_path, **options))


def test_an_edited_function_is_another_one(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    copied = Path(shutil.copy(own_functions.__file__, tmp_path / "edited_functions.py"))
    keys = []
    for text in (copied.read_text(), copied.read_text() + "\n# another one\n"):
        copied.write_text(text)
        given = {"models": pool, "data": {"validation": "edited_functions:number"}, "cache": tmp_path, "device": "cpu"}
        objective = open_objective(load_spec(given))
        keys.append(objective.evaluators["validation"].split.fingerprint)
    assert keys[0] != keys[1]


def test_batchnorm_has_nothing_to_be_recomputed_from(tmp_path: Path) -> None:
    from tests.batchnorm_family import Net

    for number in range(2):
        torch.manual_seed(number)
        net = Net("plain", 4)
        net(torch.rand(8, 3, 16, 16))
        save_file(net.state_dict(), tmp_path / f"model_{number}.safetensors")
    options = {"models": tmp_path, "family": "tests.batchnorm_family:net", "cache": tmp_path, "device": "cpu"}
    data = {"validation": f"{MODULE}:number"}
    with pytest.raises(DataError, match="cannot be recomputed where your own function scores"):
        open_objective(load_spec({**options, "data": data, "batchnorm": "recompute"}))
    assert open_objective(load_spec({**options, "data": data})).scorer.engine.recompute is None
