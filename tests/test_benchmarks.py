"""Every benchmark runs, on sizes that prove nothing else."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from mixopt import Simplex, constant, make_groups, one_hot
from mixopt.spaces.linear import Affine, Depth
from mixopt.values.mix import Mix

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SMALL = [
    *("--ingredients", "2", "--images", "20", "--image-size", "16"),
    *("--width", "32", "--layers", "1", "--head-width", "16"),
]

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a benchmark by name, and gives the JSON line it ends with."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def call(name: str, *arguments: str) -> dict[str, Any]:
        assert not importlib.import_module(name).main(arguments)
        line: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        assert line["benchmark"] == name
        return line

    return call


def test_trial(run: Run) -> None:
    found = run("trial", *SMALL, "--repeats", "1")
    assert found["differ"] <= 1
    assert set(found["parts"]) == {"fuse", "forward", "cache", "other"}
    assert found["times_faster"] == pytest.approx(found["seconds"]["naive"] / found["seconds"]["mixopt"])
    assert sum(found["parts"].values()) == pytest.approx(found["seconds"]["mixopt"])


def test_kept_logits(run: Run, clip_pool: Path) -> None:
    (few, many) = run("kept_logits", "--splits", "200x10,200x1000", "--repeats", "1")["rows"]
    assert few["bytes_with"] - few["bytes_without"] == pytest.approx(200 * 20, abs=1000)
    assert many["bytes_with"] - many["bytes_without"] == pytest.approx(200 * 66, abs=2000)
    (pool,) = run("kept_logits", "--models", str(clip_pool), "--repeats", "1")["rows"]
    assert pool["split"] == "96x4"
    assert pool["share"] is not None


def test_checks(run: Run, clip_pool: Path) -> None:
    found = run("checks", "--models", str(clip_pool), "--trials", "2", "--repeats", "1")
    assert [row["check"] for row in found["rows"]] == [
        "content of splits",
        "decoded copies",
        "cached entries",
        "journal",
    ]
    assert all(row["bytes"] > 0 and row["seconds"] > 0 for row in found["rows"])
    assert found["share"] == pytest.approx(sum(row["seconds"] for row in found["rows"]) / found["seconds"])


def test_opening(run: Run) -> None:
    found = run("opening", "--ingredients", "2", "--megabytes", "1", "--repeats", "1")
    assert found["files"] == 3
    by_way = {row["way"]: row["of_plain_read"] for row in found["rows"]}
    assert by_way.pop("plain sequential read") == 1
    assert all(share > 0 for share in by_way.values())


def test_padding(run: Run, tmp_path: Path) -> None:
    lines = [json.dumps({"text": "word " * (1 + number % 40)}) for number in range(300)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = run("padding", "--data", str(tmp_path / "texts.jsonl"), "--batch-size", "50", "--repeats", "1")
    shares = {row["way"]: row["padding"] for row in found["rows"]}
    assert shares["by length"] <= 0.1 < 0.4 < shares["in order"]
    assert found["differ"] < 1e-5


def test_surface(run: Run, clip_pool: Path) -> None:
    sizes = ["--splits", "50x4,40x40", "--mixes", "24", "--predictions", "7"]
    few, many = run("surface", *sizes, "--models", str(clip_pool))["rows"]
    assert [few["split"], many["split"]] == ["50x4", "40x40"]
    # float16 changes of all classes, and of those that matter and the rest.
    assert few["megabytes"] == pytest.approx(24 * 50 * 4 * 2 / 1e6)
    assert many["megabytes"] == pytest.approx(24 * 40 * 13 * 2 / 1e6)
    for row in (few, many):
        assert row["batch"] == pytest.approx(row["extend"] + row["propose"] + row["promise"] / 0.75)
        assert row["peak"] >= row["before"] > 0
        assert row["share"] > 0


def test_several(run: Run) -> None:
    found = run("several", *SMALL, "--repeats", "1", "--candidates", "1,2", "--no-compile")
    assert list(found["seconds"]) == ["one", "together 1", "together 2"]


def test_growth(run: Run, tmp_path: Path) -> None:
    picture = tmp_path / "growth.svg"
    found = run("growth", "--tiny", "--axes", "ingredients", "--trials", "1", "--picture", str(picture))
    assert [point["ingredients"] for point in found["points"]["ingredients"]] == [3, 6]
    ElementTree.parse(picture)


def test_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    growth: Any = importlib.import_module("growth")
    assert growth.slope([1, 2, 5, 10], [3, 12, 75, 300]) == pytest.approx(2)


def test_prefix(run: Run, clip_pool: Path) -> None:
    found = run("prefix", "--models", str(clip_pool), "--methods", "individual,coordinates", "--limit", "30")
    individual, coordinates = found["rows"]
    assert (individual["mixes"], individual["stages"]) == (4, 0)
    # Four groups, four shares each, and the start; a group's first share passes whole, the others from the group on.
    assert coordinates["mixes"] == 17
    assert coordinates["stages"] == round(3 * (3 + 2 + 1) / (17 * 4), 4)
    assert individual["identical"]
    assert coordinates["identical"]


def test_optuna_overhead(run: Run) -> None:
    found = run("optuna_overhead", "--trials", "3", "--parameters", "8", "--trial-seconds", "2")
    assert [(row["sampler"], row["storage"], row["done"]) for row in found["rows"]] == [
        ("cmaes", "journal", 3),
        ("cmaes", "memory", 3),
        ("tpe", "journal", 3),
        ("tpe", "memory", 3),
    ]
    assert all(
        row["share"] == pytest.approx(row["ms_per_trial"] / (row["ms_per_trial"] + 2000)) for row in found["rows"]
    )


def test_gpu_on_a_cpu(run: Run) -> None:
    rows = run("gpu", "--device", "cpu", "--tiny")["rows"]
    # Memory is a GPU's, and nothing so small is worth a compiler.
    expected = {"opening", "host", "fuse", "fuse_bf16", "evaluate", "agreement", "several", "naive", "search"}
    assert expected - {"host"} <= set(rows) <= expected
    assert not [row for row in rows.values() if row.get("failed")]


def test_gpu_without_one_runs_no_row(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run("gpu")["rows"] == {}


def test_search_on_a_surrogate_and_for_real(run: Run, clip_pool_template: Path, tmp_path: Path) -> None:
    options = ["--models", str(clip_pool_template), "--cache", str(tmp_path)]
    found = run("search", "surrogate", *options, "--points", "12", "--seeds", "1", "--space", "shared", "--trials", "4")
    assert found["dims"] == 3
    assert set(found["regret"]) == {"cmaes", "tpe", "gp", "random"}
    assert all(regret >= 0 for each in found["regret"].values() for regret in each.values())
    runs = run("search", "real", *options, "--trials", "4", "--audit", "--configs", "cmaes,greedy simplex")["runs"]
    assert list(runs) == ["cmaes", "greedy simplex"]
    assert all(each[0]["spared"] == 1 and each[0]["wrong"] == 0 for each in runs.values())


def test_a_grid_of_surrogates(run: Run, clip_pool_template: Path, tmp_path: Path) -> None:
    options = ["--models", str(clip_pool_template), "--cache", str(tmp_path), "--precision", "fp32"]
    small = ["--points", "12", "--seeds", "1", "--trials", "4", "--cells", "depth:learned,simplex:uniform"]
    rows = run("search", "surrogate", "--grid", *options, *small)["rows"]
    assert [(row["space"], row["from"]) for row in rows] == [("depth", "learned"), ("simplex", "uniform")]
    for row in rows:
        assert max(max(each.values()) for each in row["reached"].values()) == pytest.approx(row["best"])
        assert row["best_scored"] >= row["start_scored"]
        assert set(row["scored"]) == {"cmaes", "tpe", "gp", "random"}


@pytest.mark.parametrize(("terms", "dims"), [("linear", 40), ("diagonal", 6), ("quadratic", 4)])
def test_a_surrogate_finds_the_function(monkeypatch: pytest.MonkeyPatch, terms: str, dims: int) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    surrogate: Any = importlib.import_module("surrogate")
    random = np.random.default_rng(0)
    points = random.uniform(-1, 1, (100, dims))
    features = surrogate.TERMS[terms](points)
    values = 3 + features @ random.normal(size=features.shape[1])
    fit = surrogate.fitted(points, values)
    assert fit.at(points) == pytest.approx(values, abs=0.01)
    assert surrogate.explained(points, values) > 0.999
    assert surrogate.explained(points, random.normal(size=100)) < 0.2


def test_a_surrogate_is_fitted_where_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the simplex several points give one mix; the surrogate knows mixes alone."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    surrogate: Any = importlib.import_module("surrogate")
    groups = make_groups("whole", {"weight": 1})
    space = Simplex(one_hot(groups, ("a", "b", "c"), "a"), ("a", "b", "c"), 1.0)

    class FirstShare:
        def score(self, mix: Mix) -> Any:
            return SimpleNamespace(signal=float(mix.coefficients[0, 0]))

    points, values = surrogate.recorded(FirstShare(), space, 30)
    mixes = [space.to_mix(point) for point in points]
    assert values == pytest.approx([mix.coefficients[0, 0] for mix in mixes])
    for point, mix in zip(points, mixes, strict=True):
        assert surrogate.place(space, mix) == pytest.approx(point)


@pytest.mark.parametrize("active", [("a", "b", "c"), ("a", "c")])
@pytest.mark.parametrize("kind", [Simplex, Affine, Depth])
def test_the_place_of_a_mix_gives_the_mix_again(
    kind: type[Simplex] | type[Affine], active: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    surrogate: Any = importlib.import_module("surrogate")
    groups = make_groups("tensor", {f"blocks.{number}": 1 for number in range(4)})
    space = kind(constant(groups, ("a", "b", "c", "d"), [0.5, 0.4, 0.1, 0.0]), active, 0.5)
    random = np.random.default_rng(0)
    for _ in range(50):
        mix = space.to_mix(random.uniform(-1, 1, space.dims))
        point = surrogate.place(space, mix)
        assert np.all(np.abs(point) <= 1)
        assert space.to_mix(point).coefficients == pytest.approx(mix.coefficients, abs=1e-9)


def test_workers(run: Run, clip_pool: Path) -> None:
    pool = ("--models", str(clip_pool))
    speeds = run("workers", "speed", *pool, "--samples", "96", "--mixes", "1", "--turns", "1")["rows"]
    assert list(speeds) == ["1 worker", "2 workers", "this process"]
    assert speeds["1 worker"]["times_one_worker"] == 1
    (row,) = run("workers", "simulated", *pool, "--counts", "2", "--trials", "4", "--seconds", "0.05")["rows"]
    assert row["seconds"] > 0.05
    assert row["cost"] == pytest.approx(row["seconds"] / 0.05 - 1)
    assert 0 < row["parent"] < row["seconds"]


def test_worker_kills(run: Run, clip_pool: Path) -> None:
    arguments = ("--samples", "96", "--trials", "20", "--killed", "1", "--runs", "0", "--every", "4")
    workers, runs = run("worker_kills", "--models", str(clip_pool), *arguments)["rows"]
    assert (workers["killed"], workers["same"]) == (1, workers["searches"])
    assert runs["searches"] == 0
