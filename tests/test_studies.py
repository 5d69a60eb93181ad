"""The studies' scripts run, on sizes that prove nothing else."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import mixopt
from mixopt import DataError, demo
from tests.tiny_transformers import LABELS, text_config, write_sentences, write_text_model

ROOT = Path(__file__).parents[1]


@pytest.fixture
def batchnorm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "batchnorm"))
    monkeypatch.chdir(ROOT)
    return importlib.import_module("make_pool")


@pytest.fixture
def winning(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "winning"))
    return importlib.import_module("run_study")


def test_the_batchnorm_pool_is_one(batchnorm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = demo.draw_hyperparameters
    monkeypatch.setattr(demo, "draw_hyperparameters", lambda rng: replace(drawn(rng), epochs=2))
    for folder in ("pool", "again"):
        batchnorm.make_pool(tmp_path / folder, seed=1, ingredients=2, base=replace(demo.BASE, epochs=2))
    files = {path.name: path.read_bytes() for path in (tmp_path / "pool").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    found = mixopt.inspect(tmp_path / "pool")
    assert found["problems"] == []
    options: dict[str, Any] = {"cache": tmp_path / "cache", "out": tmp_path / "run", "limit": 100}
    report = mixopt.compare(tmp_path / "pool", methods="uniform", **options).report.as_dict()
    assert list(report["methods"][-1]["test"]) == ["test", "inverted", "blurred", "noisy", "edges"]
    with pytest.raises(SystemExit):
        batchnorm.main([str(tmp_path / "pool")])


def test_the_study_of_the_search(
    winning: Any, clip_pool_template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--models", str(clip_pool_template), "--out", str(tmp_path / "runs"), "--cache", str(tmp_path / "cache")]
    command += ["--results", str(tmp_path / "results"), "--precision", "fp32", "--seeds", "2", "--trials", "4"]
    command += ["--arms", "default,random", "--rows", "individual,greedy,ensemble,manifold:budget=2"]
    command += ["--cut", "manifold:budget=2"]
    assert not winning.main(command)
    first = capsys.readouterr().out
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    images = [each["row"]["images"] for each in results["arms"]["default"]]
    cut = results["rows"][-1]
    assert cut["name"] == f"manifold:budget=2:images={round(np.mean(images))}"
    assert cut["images"] <= np.mean(images)
    for runs in results["arms"].values():
        for each in runs:
            (begin, start), *_, (end, best) = each["best_so_far"]
            assert begin <= end == each["race"]["images"]
            assert best >= start
    assert "| **search, random** |" in first
    assert "± " in first
    ElementTree.parse(tmp_path / "results" / "best_so_far.svg")

    (tmp_path / "runs" / "default-1.json").unlink()
    assert not winning.main(command)
    resumed = json.loads((tmp_path / "results" / "results.json").read_text())
    again = resumed["arms"]["default"][1]
    assert again["wall_seconds"] is None
    assert again["row"]["search"] == results["arms"]["default"][1]["row"]["search"]
    assert resumed["arms"]["random"] == results["arms"]["random"]


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "text"))
    return importlib.import_module("train")


@pytest.mark.filterwarnings("ignore")  # of what its libraries will change one day
def test_the_text_pools_are_a_trainers_output_and_adapters(text: Any, tmp_path: Path) -> None:
    write_text_model(tmp_path / "encoder")
    rows = [{"text": "good film" if number % 2 else "dull plot", "label": LABELS[number % 2]} for number in range(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["--data", str(tmp_path), "--out", str(tmp_path / "pools"), "--encoder", str(tmp_path / "encoder")]
    command += ["--runs", "1", "--limit", "36"]
    assert not text.main(command)
    pools = tmp_path / "pools"
    base, full = (load_file(pools / name / "model.safetensors") for name in ("base", "full/run_00"))
    assert base.keys() == full.keys()
    assert not torch.equal(
        base["bert.encoder.layer.0.output.dense.weight"], full["bert.encoder.layer.0.output.dense.weight"]
    )
    encoder = load_file(tmp_path / "encoder" / "model.safetensors")
    changed = {name for name, tensor in encoder.items() if not torch.equal(tensor, base[name])}
    assert changed == {"classifier.weight", "classifier.bias"}, "the base's encoder is the pretrained one"
    adapter = json.loads((pools / "lora" / "run_00" / "adapter_config.json").read_text())
    assert "classifier" in adapter["modules_to_save"]
    told = [json.loads(line) for kind in ("full", "lora") for line in (pools / kind / "hparams.jsonl").open()]
    assert [line["run"] for line in told] == ["run_00", "run_00"]
    assert not told[0]["rank"]
    assert told[1]["rank"] == adapter["r"]
    assert not text.main(command)
    assert len((pools / "full" / "hparams.jsonl").read_text().splitlines()) == 1, "what is there is not trained again"


@pytest.mark.filterwarnings("ignore")
def test_the_text_studys_table(text: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_text_model(tmp_path / "encoder", 0, text_config(max_position_embeddings=64))
    write_sentences(tmp_path / "train.jsonl", 0)
    command = ["--data", str(tmp_path), "--out", str(tmp_path / "pools"), "--encoder", str(tmp_path / "encoder")]
    assert not text.main([*command, "--runs", "2"])
    data = {"search": write_sentences(tmp_path / "val.jsonl", 1), "test": {"test": tmp_path / "train.jsonl"}}
    for kind in ("full", "lora"):
        options: dict[str, Any] = {"base": tmp_path / "pools" / "base", "data": data, "cache": tmp_path / "cache"}
        options |= {"precision": "fp32", "device": "cpu"}
        models = tmp_path / "pools" / kind
        mixopt.compare(models, methods="individual,uniform", out=tmp_path / "runs" / f"{kind}-compare", **options)
        mixopt.search(models, trials=2, out=tmp_path / "runs" / kind, **options)
    capsys.readouterr()
    places = ["--pool", str(tmp_path / "pools"), "--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    assert not importlib.import_module("table").main(places)
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    for kind in ("full", "lora"):
        names = [row["name"] for row in results[kind]["rows"]]
        assert names[:3] == ["base", "individual", "uniform"]
        assert names[-1] == "search"
        assert len(results[kind]["members"]) == 2
        score = results[kind]["rows"][-1]["test"]["test"]
        assert f"| search | {results[kind]['rows'][-1]['search']:.4f} | {score:.4f} |" in shown


def test_the_best_so_far_of_a_seed_is_read_between_its_steps(winning: Any) -> None:
    show: Any = importlib.import_module("show")
    curve = [[100.0, 0.5], [300.0, 0.7], [400.0, 0.7]]
    assert show.steps(curve, np.array([100.0, 299.0, 300.0, 900.0])).tolist() == [0.5, 0.5, 0.7, 0.7]


def test_the_interval_is_students(winning: Any) -> None:
    show: Any = importlib.import_module("show")
    assert show.spread([1.0, 2.0, 3.0], 2) == "2.00 ± 2.48"
    assert show.spread([0.5]) == "0.5000"


def test_several_seeds_of_the_demo(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "demo"))
    seeds: Any = importlib.import_module("seeds")
    options: dict[str, Any] = {"trials": 2, "cache": tmp_path / "cache", "precision": "fp32", "device": "cpu"}
    reports = [
        mixopt.search(clip_pool_template, out=tmp_path / f"{seed}" / "run", seed=seed, **options).report
        for seed in (0, 1)
    ]
    assert not seeds.main([str(tmp_path / "0"), str(tmp_path / "1"), "--results", str(tmp_path)])
    shown = capsys.readouterr().out
    mean = np.mean([report.row("search").test["test"] for report in reports])
    (line,) = (line for line in shown.split("\n\n")[0].splitlines() if line.startswith("| search |"))
    assert line.split(" | ")[2] == f"{mean:.4f}"
    found = json.loads((tmp_path / "seeds.json").read_text(encoding="utf-8"))
    assert [run["seed"] for run in found] == [0, 1]
    gains = [run["rows"]["search"]["accuracy"]["test"] - run["rows"]["greedy"]["accuracy"]["test"] for run in found]
    assert f"search less greedy, points: test {', '.join(f'{100 * gain:+.2f}' for gain in gains)} (mean" in shown


@pytest.mark.parametrize("name", ["cifar10"])
def test_a_count_of_more_mixes_than_were_asked_for_is_said_to_be_wrong(name: str) -> None:
    results = json.loads((ROOT / "studies" / name / "results.json").read_text())
    rows = [each["row"] for runs in results["arms"].values() for each in runs]
    assert any(row["computed"] > row["evaluations"] for row in rows), "control: the record is an old one"
    assert "twice" in results["computed_note"]
    assert "added twice" in " ".join((ROOT / "studies" / name / "README.md").read_text().split())


def test_a_search_computes_no_more_mixes_than_it_asks_for(
    winning: Any, clip_pool_template: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"trials": 4, "cache": tmp_path / "cache", "precision": "fp32"}
    plan = winning.Plan(clip_pool_template, tmp_path, 1, 4, ("default",), ("greedy",), (), options)
    row = winning.searched(plan, "default", 0, "fp32")["row"]
    assert 0 < row["computed"] <= row["evaluations"]


def test_the_errors_of_a_surface(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "surface"))
    errors: Any = importlib.import_module("errors")
    monkeypatch.setattr(errors, "NEVER_SCORED", 4)
    command = ["--models", str(clip_pool_template), "--cache", str(tmp_path / "cache"), "--results", str(tmp_path)]
    command += ["--limit", "30", "--scored", "8"]
    assert not errors.main([*command, "--name", "first", "--vary", "radius,freedom"])
    assert not errors.main([*command, "--name", "second", "--vary", "radius"])
    pools = json.loads((tmp_path / "errors.json").read_text(encoding="utf-8"))
    assert list(pools) == ["first", "second"]
    # The same mixes of the same pool.
    assert pools["first"][:5] == pools["second"]
    assert [row["radius"] for row in pools["second"]] == [0.05, 0.1, 0.2, 0.4, 0.8]
    assert [row["dims"] for row in pools["first"][5:8]] == [3, 9, 12]
    assert all(row["logits"] < row["spread"] for row in pools["first"])
    assert capsys.readouterr().out.count("| shared | 3 | 0.1 |") == 3
    ElementTree.parse(tmp_path / "errors.svg")


def test_ranked_greedy_soups_and_sweeps_of_few_points(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "surface"))
    ranked: Any = importlib.import_module("ranked")
    monkeypatch.setattr(ranked, "COUNT", 1)
    command = ["--models", str(clip_pool_template), "--cache", str(tmp_path / "cache"), "--results", str(tmp_path)]
    command += ["--limit", "30", "--name", "tiny"]
    assert not ranked.main(["greedy", *command, "--pick", "3", "--seeds", "2"])
    assert not ranked.main(["sweeps", *command])
    found = json.loads((tmp_path / "ranked.json").read_text(encoding="utf-8"))["tiny"]
    whole = [row for row in found["greedy"] if row["patience"] == 0]
    assert len(found["greedy"]) == 4 * len(whole) == 4 * 5 * 2
    assert {row["evaluations"] for row in whole if row["row"] != "greedy:random"} == {3 + 2}
    first = [row for row in found["greedy"] if row["patience"] == 1]
    assert all(some["evaluations"] <= row["evaluations"] for some, row in zip(first, whole, strict=True))
    assert all(3 <= row["scored"] <= 11 and row["loses"] >= 0 for row in found["sweeps"])
    assert "| greedy:ranked | 2 refusals |" in capsys.readouterr().out


def test_samplers_side_by_side(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "surface"))
    samplers: Any = importlib.import_module("samplers")
    monkeypatch.setattr(samplers, "STOPS", (5,))
    out = tmp_path / "found.json"
    command = ["--models", str(clip_pool_template), "--out", str(out), "--starts", "uniform", "--seeds", "1"]
    command += ["--arms", "surface:10,random:6:metric", "limit=30", f'cache="{tmp_path / "cache"}"', 'precision="fp32"']
    command += ["--against", "individual"]
    samplers.main(command)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [[stop["trials"] for stop in each["stops"]] for each in found["studies"]] == [[5, 10], [5, 6]]
    for each in found["studies"]:
        first, last = each["stops"]
        assert first["images"] < last["images"]
        assert first["signal"] <= last["signal"]
        assert 0 < last["test"]["p"] <= 1
        assert "p" not in last["held out"]
    samplers.main(command)
    assert json.loads(out.read_text(encoding="utf-8")) == found  # what is there is not done again
    capsys.readouterr()
    samplers.main(["--show", "--out", str(out)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| uniform: the start", *["| uniform: surface:10"] * 2, *["| uniform: random:6:metric"] * 2
    ]  # fmt: skip
    assert all("(p " in line for line in lines[3:])


def test_fronts_side_by_side(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "surface"))
    importlib.import_module("samplers")
    fronts: Any = importlib.import_module("fronts")
    monkeypatch.setattr(fronts, "STOPS", (5,))
    out = tmp_path / "found.json"
    command = ["--models", str(clip_pool_template), "--out", str(out), "--arms", "surface:10,nsgaii:6", "--seeds", "1"]
    command += ["--start", "uniform", "limit=60", f'cache="{tmp_path / "cache"}"', 'precision="fp32"']
    fronts.main(command)
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [[stop["trials"] for stop in each["stops"]] for each in found["studies"]] == [[5, 10], [5, 6]]
    for each in found["studies"]:
        first, last = each["stops"]
        # The start alone dominates a square; more trials dominate more.
        assert 0.1**2 <= first["steering"] <= last["steering"]
        assert first["images"] * last["trials"] == last["images"] * first["trials"]
    fronts.main(command)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    capsys.readouterr()
    fronts.main(["--show", "--out", str(out)])
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4
    points = np.array([[1.0, 0.2], [0.5, 0.5], [0.4, 0.4]])
    assert fronts.volume(points, np.zeros(2)) == pytest.approx(0.2 + 0.5 * 0.3)


def test_simulated_last_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "surface"))
    crossfit: Any = importlib.import_module("crossfit")
    assert not crossfit.main(["--searches", "1", "--gains", "0,0.1", "--signals", "nll", "--results", str(tmp_path)])
    nothing, much = json.loads((tmp_path / "crossfit.json").read_text(encoding="utf-8"))
    assert (nothing["gain"], nothing["steps"], nothing["real"]) == (0, 0, None)
    assert (much["steps"], much["worse"]) == (1, 0)
    assert 0.05 < much["real"] < 0.1
    assert "| nll | 0.1 | 1 | 1 | 0 |" in capsys.readouterr().out


def test_the_study_of_who_may_judge(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "surface"))
    judges: Any = importlib.import_module("judges")
    command = ["--models", str(clip_pool_template), "--name", "tiny", "--scored", "20", "--results", str(tmp_path)]
    options = ["start=uniform", "space=shared", f"cache={tmp_path / 'cache'}", "device=cpu"]
    for _ in range(2):
        assert not judges.main([*command, *options])
    rows = json.loads((tmp_path / "judges.json").read_text(encoding="utf-8"))
    assert [(row["signal"], row["judging"]) for row in rows] == [
        ("nll", 96),
        ("nll", 19),
        ("smooth", 96),
        ("smooth", 19),
    ]
    taken = rows[0]
    assert taken["share"] > 0
    assert list(taken["tests"]) == ["test", "shift"]
    assert taken["said"]["nll"][0] == pytest.approx(taken["share"] * taken["gain"], rel=0.1)
    assert taken["tests"]["test"]["nll"][0] > 0
    assert taken["tests"]["test"]["signal"] == taken["tests"]["test"]["nll"]
    assert not judges.main([*command, "--signals", "accuracy", *options])
    rows = json.loads((tmp_path / "judges.json").read_text(encoding="utf-8"))
    assert [row["signal"] for row in rows] == ["accuracy", "accuracy"]
    assert capsys.readouterr().out.count("| tiny | nll | 96 |") == 2


def test_what_evidence_of_a_shift_is_worth(
    clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "robust"))
    lines: Any = importlib.import_module("lines")
    (tmp_path / "other.npz").write_bytes((clip_pool_template / "test.npz").read_bytes())
    tests = {"test": str(clip_pool_template / "test.npz"), "other": str(tmp_path / "other.npz")}
    data = {"validation": str(clip_pool_template / "val.npz"), "test": tests}
    options = [f"data={json.dumps(data)}", f"cache={json.dumps(str(tmp_path / 'cache'))}", "trials=2"]
    lines.main(["--models", str(clip_pool_template), "--out", str(tmp_path / "found.json"), *options])
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert len(found["ways"]) == 8
    for points in found["ways"].values():
        assert list(points) == [str(share) for share in lines.SHARES]
    # Nothing is better than itself; and a whole way leads to its end.
    rows, whole = found["rows"], found["ways"]["greedy to base"]["1.0"]["other"]
    assert whole["truth"] == pytest.approx(rows["base"]["other"] - rows["greedy"]["other"], abs=1e-5)
    capsys.readouterr()
    lines.main(["--show", str(tmp_path / "found.json")])
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"| evidence | {clip_pool_template.name} |"
    assert {line.split(" | ")[0][2:] for line in shown[2:]} == set(whole) - {"truth"}


def test_the_rank_correlation_of_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "robust"))
    lines: Any = importlib.import_module("lines")
    point = {"in distribution": {"truth": 0.0}}
    gains = {
        "0.125": (0.01, 0.02, -0.3),
        "0.25": (0.02, 0.03, -0.4),
        "0.375": (0.03, 0.01, -0.5),
        "1.0": (9.0, -9.0, 9.0),
    }
    points = {
        share: {**point, "shift": {"truth": truth, "right": right, "wrong": wrong}}
        for share, (truth, right, wrong) in gains.items()
    }
    found = lines.worth({"ways": {"way": points}}, ["shift"])
    assert found["wrong"] == pytest.approx((-1.0, 0.0)), "beyond half of the way nothing counts"
    assert found["right"] == pytest.approx((0.4, 1.0))


@pytest.fixture
def defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "defaults"))


@pytest.mark.usefixtures("defaults")
def test_hyperparameters_of_the_learner(
    clip_pool_template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    learning: Any = importlib.import_module("learning")
    out, cache = tmp_path / "found.json", f"cache={json.dumps(str(tmp_path / 'cache'))}"
    rows = "default,batch 64,leave 1/2,bagged"
    learning.main(["--models", str(clip_pool_template), "--out", str(out), "--folds", "2", "--rows", rows, cache])
    found = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert found["default"]["more"] == [0.0, 0.0]
    assert found["batch 64"]["less"][0] == pytest.approx(found["default"]["nll"] - found["batch 64"]["nll"])
    assert len({row["nll"] for row in found.values()}) == 4
    capsys.readouterr()
    learning.main(["--show", str(out)])
    assert f"| default | {found['default']['accuracy']:.4f}, {found['default']['nll']:.4f} |" in capsys.readouterr().out


@pytest.mark.usefixtures("defaults")
def test_defaults_are_judged_on_folds_that_no_search_saw(
    clip_pool_template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    searches: Any = importlib.import_module("searches")
    command = ["--models", str(clip_pool_template), "--out", str(tmp_path / "found"), "--folds", "1"]
    command += ["--arms", "default;random", f"cache={json.dumps(str(tmp_path / 'cache'))}", "trials=3"]
    searches.main(command)
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["folds"]["0"]
    with np.load(tmp_path / "found" / "0" / "rest.npz") as rest, np.load(tmp_path / "found" / "0" / "fold.npz") as fold:
        assert len(rest["y"]) + len(fold["y"]) == 96
        assert len(fold["y"]) == len(found["default"]["right"]) == len(found["random"]["losses"])
        assert not {image.tobytes() for image in rest["x"]} & {image.tobytes() for image in fold["x"]}
    capsys.readouterr()
    searches.main(["--show", str(tmp_path / "found.json")])
    assert f"| default | {np.mean(found['default']['right']):.4f}, " in capsys.readouterr().out


@pytest.mark.usefixtures("defaults")
def test_folders_and_lines_are_divided_too(tmp_path: Path) -> None:
    searches: Any = importlib.import_module("searches")
    for label in ("cat", "dog"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(10):
            (tmp_path / "images" / label / f"{number}.png").write_bytes(b"")
    lines = [json.dumps({"text": str(number), "label": number % 2}) for number in range(20)]
    (tmp_path / "val.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rest, fold = searches.divided(tmp_path / "images", tmp_path / "folder", 1)
    assert [len(list(part.glob("*/*"))) for part in (rest, fold)] == [16, 4]
    assert len(list(fold.glob("cat/*"))) == 2
    (tmp_path / "lines").mkdir()
    rest, fold = searches.divided(tmp_path / "val.jsonl", tmp_path / "lines", 1)
    parts = [part.read_text(encoding="utf-8").splitlines() for part in (rest, fold)]
    assert sorted(parts[0] + parts[1]) == sorted(lines)
    assert len(parts[1]) == 4
    with pytest.raises(DataError, match=r"splits as \.npz, \.jsonl or a folder"):
        searches.divided(tmp_path / "val.csv", tmp_path, 0)


def test_the_deciding_studys_table(
    winning: Any,
    clip_pool_template: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "studies" / "deciding"))
    deciding: Any = importlib.import_module("deciding")
    command = [
        "--models",
        str(clip_pool_template),
        "--out",
        str(tmp_path / "runs"),
        "--results",
        str(tmp_path / "found"),
    ]
    command += ["--precision", "fp32", "--seeds", "2", "--trials", "3", "--arms", "default", "--rows", "greedy"]
    assert not winning.main([*command, "--cut", "manifold:budget=2", f"cache={json.dumps(str(tmp_path / 'cache'))}"])
    capsys.readouterr()
    assert not deciding.main([str(tmp_path / "found" / "results.json"), "--name", "tiny", "--into", str(tmp_path)])
    shown = capsys.readouterr().out
    results = json.loads((tmp_path / "found" / "results.json").read_text(encoding="utf-8"))
    runs = results["arms"]["default"]
    scores = [run["row"]["test"]["test"] for run in runs]
    assert f"| **search, default** | {np.mean(scores):.4f}" in shown
    greedy = next(row for row in results["rows"] if row["name"] == "greedy")["test"]["test"]
    assert f"search, default less greedy, test: {100 * (scores[0] - greedy):+.1f} (p" in shown
    assert not deciding.main(["--show", str(tmp_path / "tiny.json")])
    assert capsys.readouterr().out == shown
