"""The page at the end of a run, and what it holds for runs of every kind."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mixopt
from mixopt.errors import RunError
from mixopt.listener import Listener
from mixopt.reporting.diagnosis import Diagnosis, diagnosis_from
from mixopt.scoring.objective import Objective

TINY: dict[str, Any] = {"trials": 6, "precision": "fp32", "robust": "off"}


def diagnosis_of(run: Path) -> Diagnosis:
    return diagnosis_from((run / "diagnosis.json").read_text(), "diagnosis.json")


@pytest.mark.usefixtures("pages")
def test_a_search_ends_with_its_page(clip_pool: Path, run_options: dict[str, Any]) -> None:
    (clip_pool / "hparams.jsonl").write_text('{"model": "model_0", "lr": 0.5}\n{"model": "model_1", "lr": 0.25}\n')
    told: list[str] = []
    result = mixopt.search(clip_pool, **run_options, **TINY, page="full", listener=Listener(info=told.append))
    page, found = (result.folder / "report.html").read_text(), diagnosis_of(result.folder)
    assert f"wrote {result.folder / 'report.html'}" in told
    for row in result.report.made:
        assert f">{row.name}" in page or f"{row.name}<" in page
        for value in (row.search, *row.test.values()):
            assert f"{value:.4f}" in page
    assert [each.name for each in found.checkpoints] == [f"model_{number}" for number in range(4)]
    assert found.checkpoints[0].hyperparameters == {"lr": 0.5}
    assert found.samples == {"test": 96, "shift": 96}
    assert len(found.trials) > 1
    assert found.trials[0].test.keys() == {"test", "shift"}
    assert found.midpoints is not None
    assert found.midpoints.samples == 96
    assert not found.missing
    assert found.row == result.report.best
    assert {mix.row for mix in found.mixes} == {row.name for row in result.report.made}
    assert found.images > 0


@pytest.mark.usefixtures("pages")
def test_scores_on_the_page_are_those_of_an_objective(clip_pool: Path, run_options: dict[str, Any]) -> None:
    result = mixopt.compare(clip_pool, **run_options, methods=("uniform", "greedy"), precision="fp32", page="full")
    objective = mixopt.open_objective(mixopt.load_spec({"models": clip_pool, "cache": run_options["cache"]}))
    found = diagnosis_of(result.folder)
    groups = mixopt.make_groups("whole", objective.pool.sizes)
    for each in found.checkpoints:
        mix = mixopt.one_hot(groups, objective.pool.columns, each.name)
        for split, value in each.scores.items():
            assert objective.whole().score(mix, split).value == pytest.approx(value)
    uniform = found.mix_of("uniform")
    assert uniform is not None
    assert dict(zip(uniform.columns, uniform.coefficients[0], strict=True))["model_2"] == 0.25
    for change in found.changes:
        before, after = (result.report.row(name).metrics[change.split]["accuracy"] for name in ("greedy", found.row))
        reference = result.report.row(found.reference).metrics[change.split]["accuracy"] if found.reference else before
        count = sum(each.samples for each in change.classes)
        assert sum(each.before for each in change.classes) / count == pytest.approx(reference)
        net = sum(each.gained - each.lost for each in change.classes)
        assert net / count == pytest.approx(after - reference)


@pytest.mark.usefixtures("pages")
def test_a_page_spends_no_more_than_a_quarter(
    clip_pool: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    real = Objective.outcomes

    def counted(self: Objective, mix: Any, split: str, count: int) -> Any:
        seen.append(count)
        return real(self, mix, split, count)

    monkeypatch.setattr(Objective, "outcomes", counted)
    result = mixopt.search(clip_pool, **run_options, **TINY)
    found, images = diagnosis_of(result.folder), result.report.row("search").images
    assert found.images <= images / 4
    assert sum(seen) >= found.images
    page = (result.folder / "report.html").read_text()
    for reason in found.missing.values():
        assert reason.replace("'", "&#39;") in page


def test_page_off_leaves_none(clip_pool: Path, run_options: dict[str, Any], pages: None) -> None:
    out = run_options["out"]
    mixopt.compare(clip_pool, **run_options, methods=("uniform",))
    assert (out / "report.html").exists()
    mixopt.compare(clip_pool, **run_options, methods=("uniform",), page="off")
    assert not (out / "report.html").exists()
    assert not (out / "diagnosis.json").exists()
    told: list[str] = []
    mixopt.report(out, html=out / "again.html")
    assert "made without --page" in (out / "again.html").read_text()
    assert not told


@pytest.mark.usefixtures("pages")
def test_the_same_run_again_writes_the_same_page(clip_pool: Path, run_options: dict[str, Any]) -> None:
    mixopt.search(clip_pool, **run_options, **TINY)
    before = diagnosis_of(run_options["out"])
    mixopt.search(clip_pool, **run_options, **TINY)
    after = diagnosis_of(run_options["out"])
    assert before.model_copy(update={"seconds": 0.0}) == after.model_copy(update={"seconds": 0.0})


@pytest.mark.usefixtures("pages")
def test_pages_without_base_or_tests(clip_pool: Path, run_options: dict[str, Any]) -> None:
    text = (clip_pool / "pool.toml").read_text()
    (clip_pool / "base.safetensors").unlink()
    text = re.sub(r"base = .*\n|\[data.test\][\s\S]*", "", text)
    (clip_pool / "pool.toml").write_text(text)
    result = mixopt.compare(clip_pool, **run_options, methods=("individual", "greedy"), precision="fp32")
    page = (result.folder / "report.html").read_text()
    assert "no test split was given" in page
    assert "the mean of all" in page
    assert "cosine to the base" not in page


@pytest.mark.usefixtures("pages")
def test_a_row_that_failed_stands_under_the_table(clip_pool: Path, run_options: dict[str, Any]) -> None:
    (clip_pool / "base.safetensors").unlink()
    text = (clip_pool / "pool.toml").read_text()
    (clip_pool / "pool.toml").write_text(text.replace('base = "base.safetensors"\n', ""))
    result = mixopt.compare(clip_pool, **run_options, methods=("uniform", "individual", "model_stock"))
    assert "model_stock" in result.failed
    page = (result.folder / "report.html").read_text()
    assert "model_stock failed: " in page


@pytest.mark.usefixtures("pages")
def test_a_damaged_diagnosis_costs_its_sections_alone(clip_pool: Path, run_options: dict[str, Any]) -> None:
    out = run_options["out"]
    mixopt.compare(clip_pool, **run_options, methods=("uniform", "individual"))
    (out / "diagnosis.json").write_text((out / "diagnosis.json").read_text()[:-40])
    warned: list[str] = []
    mixopt.report(out, html=out / "again.html", listener=Listener(warn=warned.append))
    page = (out / "again.html").read_text()
    assert "diagnosis.json" in warned[0]
    assert "Not here: " in page
    assert "Every row" in page


def test_pictures_as_files(clip_pool: Path, run_options: dict[str, Any], pages: None) -> None:
    out = run_options["out"]
    mixopt.search(clip_pool, **run_options, **TINY)
    again = shutil.copytree(out, out.with_name("other"))
    folder, document = out.with_name("png"), out.with_name("all.pdf")
    mixopt.report(out, png=folder, pdf=document)
    names = {each.stem for each in folder.iterdir()}
    assert {"shift-shift", "mix-search", "half-way", "geometry", "search", "time", "classes-test"} <= names
    assert document.read_bytes().startswith(b"%PDF")
    mixopt.report(out, png=folder, pdf=document)  # its own are replaced
    (folder / "time.png").write_bytes(b"mine, and no picture")
    with pytest.raises(RunError, match=r"--png .*time\.png: already there, and no \.png file of mixopt's"):
        mixopt.report(out, png=folder)
    with pytest.raises(RunError, match="expected a folder, found a file"):
        mixopt.report(out, png=document)
    page = out.with_name("both.html")
    mixopt.report(out, again, html=page)
    assert "Over 2 runs the best row has on average accuracy" in page.read_text()


def test_diagnose_needs_no_run(clip_pool: Path, tmp_path: Path) -> None:
    page = tmp_path / "pool.html"
    found = mixopt.diagnose(clip_pool, html=page, cache=tmp_path / "cache", precision="fp32", device="cpu")
    assert found.midpoints is not None
    assert found.midpoints.names == tuple(f"model_{number}" for number in range(4))
    assert [set(each.scores) for each in found.checkpoints] == [{"validation", "test", "shift"}] * 4
    text = page.read_text()
    for each in found.checkpoints:
        assert f"{each.scores['test']:.4f}" in text
    assert not (Path("runs") / clip_pool.name).exists()
    assert json.loads(found.to_json())["metric"] == "accuracy"
    page.write_text("mine")
    with pytest.raises(RunError, match=r"no \.html file of mixopt's"):
        mixopt.diagnose(clip_pool, html=page, cache=tmp_path / "cache")


def test_diagnose_finds_a_checkpoint_of_another_basin(clip_pool: Path, tmp_path: Path) -> None:
    """One checkpoint's weights are negated and scaled: half-way to it nothing works, and it is named."""
    from safetensors.torch import load_file, save_file

    path = clip_pool / "model_2.safetensors"
    weights = load_file(path)
    random = np.random.default_rng(0)
    for name, tensor in weights.items():
        if name.startswith("visual.") and tensor.ndim > 1:
            weights[name] = -3 * tensor.flip(0).roll(int(random.integers(1, 9)), 0)
    save_file(weights, path)
    found = mixopt.diagnose(clip_pool, cache=tmp_path / "cache", precision="fp32", device="cpu")
    from mixopt.reporting.page.sections import basins

    assert found.midpoints is not None
    assert found.checkpoints[2].distance > 3 * found.checkpoints[1].distance
    assert "half-way" in basins(found.midpoints).lower()
