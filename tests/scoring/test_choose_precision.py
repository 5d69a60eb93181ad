"""The precision of forward passes: chosen by measurement, kept by the run, part of every key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from torch import Tensor

import mixopt
from mixopt import RunError, load_spec, open_objective
from mixopt.assemble import assemble
from mixopt.scoring import choose_precision as precision
from mixopt.scoring.choose_precision import Measured, low_precisions, measure
from mixopt.scoring.device import limit_threads
from mixopt.scoring.evaluator import Evaluator
from mixopt.values.groups import make_groups
from tests.conftest import random_mix
from tests.listening import Recorder
from tests.scoring.memory import ENCODING, make_model, make_split

CPU = torch.device("cpu")
LOW = ("bf16", "fp16")


def nothing(*_: Any) -> None:
    """Hear nothing."""


def measured(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], wrong: dict[str, int] | None = None, **more: Any
) -> Measured:
    """The choice where passes take so long, and so many predictions of each precision are others than in fp32."""
    monkeypatch.setattr(precision, "_seconds", lambda _, evaluator, name, batch: seconds[name])
    model = make_model()
    names = {torch.bfloat16: "bf16", torch.float16: "fp16"}

    def predict(images: Tensor) -> Tensor:
        name = names[torch.get_autocast_dtype("cpu")] if torch.is_autocast_enabled("cpu") else ""
        with torch.autocast("cpu", enabled=False):
            logits: Tensor = model(images)
        count = (wrong or {}).get(name, 0)
        logits[:count] = -logits[:count]
        if name in more.get("overflows", ()):
            logits[0] = float("inf")
        return logits

    return measure(predict, Evaluator(make_split(1000), ENCODING, CPU, 1000), LOW, more.get("progress", nothing))


@pytest.mark.parametrize(
    ("seconds", "wrong", "chosen", "compared"),
    [
        ({"fp32": 1.0, "bf16": 0.5, "fp16": 0.4}, {}, "fp16", {"fp16"}),
        ({"fp32": 1.0, "bf16": 0.84, "fp16": 2.0}, {}, "fp32", set()),
        ({"fp32": 1.0, "bf16": 0.83, "fp16": 2.0}, {}, "bf16", {"bf16"}),
        ({"fp32": 1.0, "bf16": 0.5, "fp16": 0.4}, {"fp16": 3}, "bf16", {"bf16", "fp16"}),
        ({"fp32": 1.0, "bf16": 0.5, "fp16": 0.4}, {"fp16": 2}, "fp16", {"fp16"}),
        ({"fp32": 1.0, "bf16": 0.5, "fp16": 2.0}, {"bf16": 3}, "fp32", {"bf16"}),
        ({"fp32": 0.09, "bf16": 0.01, "fp16": 0.01}, {}, "fp32", set()),
    ],
)
def test_a_low_precision_is_taken_where_it_is_clearly_faster_and_agrees(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float], wrong: dict[str, int], chosen: str, compared: set[str]
) -> None:
    found = measured(monkeypatch, seconds, wrong)
    assert found.precision == chosen
    assert set(found.differing) == compared
    assert found.differing == {name: wrong.get(name, 0) / 1000 for name in compared}
    assert found.as_dict()["mode"] == chosen
    assert all(name in str(found) for name in found.images_per_second)


def test_a_precision_that_overflows_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    found = measured(monkeypatch, {"fp32": 1.0, "bf16": 0.5, "fp16": 0.4}, overflows=("fp16",))
    assert found.precision == "bf16"
    assert "fp16 cannot be used (losses that are not finite)" in str(found)


def test_progress_reaches_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, int]] = []
    measured(monkeypatch, {"fp32": 1.0, "bf16": 0.5, "fp16": 0.4}, progress=lambda *told: heard.append(told))
    assert heard[-1] == ("comparing precisions", 3000, 3000)
    assert all(done <= total for _, done, total in heard)


def test_a_model_that_cannot_be_run_in_a_precision_stays_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "WORTHWHILE", 0.0)
    model = make_model()

    def predict(images: Tensor) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError('"geqrf" not implemented\nmore')
        return torch.as_tensor(model(images))

    found = measure(predict, Evaluator(make_split(), ENCODING, CPU), LOW, nothing)
    assert found.precision == "fp32"
    assert found.failed == dict.fromkeys(LOW, '"geqrf" not implemented')


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_fp16", ("bf16", "fp16")),
        ("flags\t\t: fpu avx2", ()),
        ("Features\t: fp asimd asimdhp bf16", ("bf16", "fp16")),
        ("vendor_id : x", ()),
    ],
)
def test_what_a_processor_computes_in(
    line: str, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor : 0\n{line}\nbugs : none\n")
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "cpuinfo")
    assert low_precisions(CPU) == expected
    monkeypatch.setattr(precision, "_CPU_INFO", tmp_path / "missing")
    assert low_precisions(CPU) == ()


@pytest.fixture
def choosing(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lets the measurement choose bf16, and counts how often it is asked."""
    asked: list[str] = []

    def fake(*_: Any) -> Measured:
        asked.append("measured")
        return Measured("bf16", {"fp32": 100.0, "bf16": 200.0}, {"bf16": 0.001}, {}, 96)

    monkeypatch.setattr("mixopt.scoring.choose_precision.measure", fake)
    monkeypatch.setattr("mixopt.scoring.choose_precision.low_precisions", lambda _: LOW)
    return asked


def test_a_search_keeps_what_was_measured(
    choosing: list[str], clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    heard = Recorder()
    listener = heard.listener
    options = {**run_options, "sampler": "random"}
    result = mixopt.search(clip_pool_template, trials=2, listener=listener, **options)
    assert (
        "precision: auto, bf16, by the uniform soup on validation: fp32 100 images/s; bf16 200 images/s (0.10 % of 96 "
        "predictions differ from fp32)"
    ) in heard.infos
    assert result.report.as_dict()["precision"]["mode"] == "bf16"
    assert result.report.as_dict()["verification"]["difference"] == 0
    assert result.report.as_dict()["verification"]["predictions_differing"] == 0
    assert tomllib.loads((result.folder / "run.toml").read_text())["precision"] == "bf16"
    resumed = mixopt.search(clip_pool_template, trials=3, **options)
    assert choosing == ["measured"]
    assert resumed.report.as_dict()["precision"] == {"mode": "bf16"}
    assert resumed.report.as_dict()["trials"]["complete"] == 3
    with pytest.raises(RunError, match='precision was "bf16", now "fp32"'):
        mixopt.search(clip_pool_template, trials=3, precision="fp32", **options)


def test_a_study_from_before_precisions_goes_on_in_fp32(
    choosing: list[str], clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    options = {**run_options, "sampler": "random"}
    result = mixopt.search(clip_pool_template, trials=2, precision="fp32", **options)
    kept = result.folder / "run.toml"
    kept.write_text("".join(line for line in kept.read_text().splitlines(True) if not line.startswith("precision")))
    mixopt.search(clip_pool_template, trials=3, **options)
    assert not choosing


def test_a_comparison_keeps_what_was_measured(
    choosing: list[str], clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    for _ in range(2):
        result = mixopt.compare(clip_pool_template, methods="uniform", **run_options)
        assert result.report.as_dict()["precision"]["mode"] == "bf16"
        assert result.report.as_dict()["verification"]["difference"] == 0
    assert choosing == ["measured"]


def test_precision_is_in_the_key_and_fp32_keeps_its_own(
    choosing: list[str], clip_pool_template: Path, tmp_path: Path
) -> None:
    keys, scores, slopes = {}, {}, {}
    for name in ("auto", "fp32", *LOW):
        spec = load_spec({"models": clip_pool_template, "cache": tmp_path / name, "device": "cpu", "precision": name})
        objective = open_objective(spec)
        mix = random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns)
        keys[name] = objective.key(mix, "validation")
        scores[name] = objective.score(mix).outcomes.losses
        slopes[name] = objective.gradient(mix, np.arange(40)).coefficients
        assert objective.scorer.keys.identity["precision"] == ("bf16" if name == "auto" else name)
    assert keys["auto"] == keys["bf16"]
    assert len({*keys.values()}) == 3
    assert np.array_equal(scores["auto"], scores["bf16"])
    for name in LOW:
        assert scores[name] == pytest.approx(scores["fp32"], abs=0.1)
        assert not np.array_equal(scores[name], scores["fp32"])
        assert np.array_equal(slopes[name], slopes["fp32"]), "gradients stay in fp32"


def test_evaluate_is_in_fp32_unless_told(clip_pool_template: Path, tmp_path: Path) -> None:
    def nll(**options: Any) -> float:
        found = mixopt.evaluate(
            clip_pool_template / "model_0.safetensors",
            **{"data": {"search": clip_pool_template / "val.npz"}, "cache": tmp_path, "device": "cpu", **options},
        )
        return float(found["splits"]["val"]["metrics"]["nll"])

    assert nll() == nll(precision="fp32") == nll(precision="auto")
    assert nll(precision="bf16") != nll()
    assert nll(precision="bf16") == pytest.approx(nll(), abs=0.05)


@pytest.mark.parametrize(("threads", "cores", "expected"), [(8, 2, 2), (1, 2, 1), (2, 2, 2)])
def test_threads_are_lowered_to_the_cores_and_never_raised(
    threads: int, cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [threads]
    monkeypatch.setattr(joblib, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    limit_threads(torch.device("cuda"))
    assert now == [threads]
    limit_threads(CPU)
    assert now[-1] == expected


def test_opening_limits_threads_and_says_when_batches_do_not_fit(
    clip_pool_template: Path, run_options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [64]
    monkeypatch.setattr(joblib, "cpu_count", lambda: 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    real = Evaluator._pass

    def limited(self: Evaluator, predict: Any, samples: slice, size: int) -> tuple[Tensor, Tensor]:
        if samples.stop - samples.start > 30:
            raise torch.OutOfMemoryError("no room")
        return real(self, predict, samples, size)

    monkeypatch.setattr(Evaluator, "_pass", limited)
    heard = Recorder()
    listener = heard.listener
    objective = assemble(load_spec({"models": clip_pool_template, "confirm": 0, **run_options}), listener).objective
    assert now == [64, 1]
    objective.score(random_mix(make_groups("whole", objective.pool.sizes), objective.pool.columns))
    assert heard.warnings == [
        "validation: 96 images at a time do not fit in memory on cpu; going on with 24 at a time (--batch-size 24 "
        "starts with that)"
    ]
