"""Compiled forward passes: compiled once for all mixes, told apart from others, refused where they cannot be."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import mixopt
from mixopt import MixoptError, Objective, RunError, load_spec, open_objective
from mixopt.scoring import compiled
from mixopt.values.groups import make_groups
from tests.conftest import random_mix
from tests.listening import Recorder
from tests.scoring.batchnorm_pool import ingredients, trained, write_pool
from tests.text_family import write_text_pool


class Counting:
    """A backend that compiles nothing: counts what it was given, and by which batch sizes it was then called."""

    def __init__(self) -> None:
        self.graphs = 0
        self.batches: list[int] = []

    def __call__(self, graph: fx.GraphModule, _: list[Tensor]) -> Any:
        self.graphs += 1

        def forward(*inputs: Any) -> Any:
            outputs = graph.forward(*inputs)
            self.ran(outputs[0])
            # Bits of its own, so that a pass that is not compiled shows.
            return tuple(output * (1 + 1e-4) for output in outputs)

        return forward

    def ran(self, logits: Tensor) -> None:
        self.batches.append(len(logits))


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    counting = Counting()
    monkeypatch.setattr(compiled, "BACKEND", counting)
    torch.compiler.reset()
    yield counting
    torch.compiler.reset()


def opened(pool: Path, cache: Path, **options: Any) -> Objective:
    given = {
        "models": pool,
        "cache": cache,
        "device": "cpu",
        "batch_size": 40,
        "precision": "fp32",
        "confirm": 0,
        **options,
    }
    return open_objective(load_spec(given))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_mixes_splits_and_last_batches_share_one_graph(
    precision: str, backend: Counting, clip_pool_template: Path, tmp_path: Path
) -> None:
    objective = opened(clip_pool_template, tmp_path / "compiled", compile=True, precision=precision)
    plain = opened(clip_pool_template, tmp_path / "plain", precision=precision)
    assert objective.scorer.engine.reuse is None
    assert plain.scorer.engine.reuse is not None
    groups = make_groups("block", objective.pool.sizes)
    mixes = [random_mix(groups, objective.pool.columns, seed) for seed in range(3)]
    for split in objective.evaluators:
        for mix in mixes:
            found, expected = objective.score(mix, split).outcomes, plain.score(mix, split).outcomes
            assert found.losses == pytest.approx(expected.losses, abs=1e-2)
            assert not np.array_equal(found.losses, expected.losses), "the backend's bits"
    assert found.losses.shape == (96,)
    ensembles = objective.score_ensemble(mixes).outcomes, plain.score_ensemble(mixes).outcomes
    assert ensembles[0].losses == pytest.approx(ensembles[1].losses, abs=1e-2)
    assert backend.graphs == 1
    assert set(backend.batches) == {40}
    passes = 1 + 3 * 3 * 3 + 3 * 3  # opening compiles; then mixes, splits and batches; then the ensemble
    assert len(backend.batches) == passes


def test_gradients_are_not_compiled(backend: Counting, clip_pool_template: Path, tmp_path: Path) -> None:
    objective = opened(clip_pool_template, tmp_path / "compiled", compile=True)
    plain = opened(clip_pool_template, tmp_path / "plain")
    mix = random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns)
    found, expected = (each.gradient(mix, np.arange(40)).coefficients for each in (objective, plain))
    assert np.array_equal(found, expected)
    assert len(backend.batches) == 1, "opening's own"


@pytest.mark.usefixtures("backend")
def test_compiled_scores_have_keys_of_their_own(clip_pool_template: Path, tmp_path: Path) -> None:
    absent = opened(clip_pool_template, tmp_path)
    off, on = (opened(clip_pool_template, tmp_path, compile=value) for value in (False, True))
    mix = random_mix(make_groups("whole", on.pool.sizes), on.pool.columns)
    assert "compile" not in absent.scorer.keys.identity
    assert absent.key(mix, "validation") == off.key(mix, "validation") != on.key(mix, "validation")
    off.score(mix)
    assert not on.score(mix).cached


def test_a_search_scores_its_file_the_same_way(
    backend: Counting, clip_pool_template: Path, run_options: dict[str, Any]
) -> None:
    options = {**run_options, "sampler": "random", "precision": "fp32"}
    heard = Recorder()
    listener = heard.listener
    result = mixopt.search(clip_pool_template, trials=2, compile=True, listener=listener, **options)
    assert any(text.startswith("compiled in ") for text in heard.infos)
    assert result.report.as_dict()["time"]["compile"] >= 0
    assert result.report.as_dict()["verification"]["difference"] == 0
    assert result.report.as_dict()["verification"]["predictions_differing"] == 0
    assert backend.graphs == 1, "the file is scored by the graph of the trials"
    assert tomllib.loads((result.folder / "run.toml").read_text())["compile"] is True
    assert (
        mixopt.search(clip_pool_template, trials=3, compile=True, **options).report.as_dict()["trials"]["complete"] == 3
    )
    with pytest.raises(RunError, match="compile was true, now null"):
        mixopt.search(clip_pool_template, trials=3, **options)


@pytest.mark.usefixtures("backend")
def test_a_study_that_is_not_compiled_keeps_its_facts(clip_pool_template: Path, run_options: dict[str, Any]) -> None:
    options = {**run_options, "sampler": "random", "precision": "fp32"}
    result = mixopt.search(clip_pool_template, trials=2, **options)
    assert "compile" not in result.report.as_dict()["time"]
    kept = result.folder / "run.toml"
    kept.write_text("".join(line for line in kept.read_text().splitlines(True) if not line.startswith("compile")))
    assert mixopt.search(clip_pool_template, trials=3, **options).report.as_dict()["trials"]["complete"] == 3
    with pytest.raises(RunError, match="compile was null, now true"):
        mixopt.search(clip_pool_template, trials=3, compile=True, **options)


def test_evaluate(backend: Counting, clip_pool_template: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": {"search": clip_pool_template / "val.npz"}, "cache": tmp_path, "device": "cpu"}
    eager, found = (
        mixopt.evaluate(clip_pool_template / "model_0.safetensors", compile=value, **options)["splits"]["val"][
            "metrics"
        ]
        for value in (False, True)
    )
    assert found["nll"] == pytest.approx(eager["nll"], abs=1e-2)
    assert backend.batches == [100]


def test_batchnorm_statistics_are_not_compiled(backend: Counting, tmp_path: Path) -> None:
    """Its predictor is a module, not a function."""
    pool = write_pool(tmp_path / "pool", ingredients(trained(own_statistics=True)))
    objective = opened(pool, tmp_path / "compiled", compile=True, batchnorm="recompute")
    plain = opened(pool, tmp_path / "plain", batchnorm="recompute")
    for seed in range(3):
        mix = random_mix(make_groups("block", objective.pool.sizes), objective.pool.columns, seed)
        found, expected = objective.scorer.engine.statistics(mix), plain.scorer.engine.statistics(mix)
        assert found
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert objective.score(mix).outcomes.losses == pytest.approx(plain.score(mix).outcomes.losses, abs=1e-2)
    assert backend.graphs == 1
    assert len(backend.batches) == 1 + 3 * 3


def test_texts_of_any_length_share_one_graph(backend: Counting, tmp_path: Path) -> None:
    """What is collated is two tensors; batches keep the padding of their split."""
    pool = write_text_pool(tmp_path / "pool")
    objective = opened(pool, tmp_path / "compiled", compile=True, batch_size=7)
    plain = opened(pool, tmp_path / "plain", batch_size=7)
    mix = random_mix(make_groups("tensor", objective.pool.sizes), objective.pool.columns)
    found, expected = (each.score(mix).outcomes.losses for each in (objective, plain))
    assert found == pytest.approx(expected, abs=1e-2)
    assert not np.array_equal(found, expected), "the backend's bits"
    evaluator: Any = objective.evaluators["validation"]
    assert len({batch[0].shape for batch, _ in evaluator.batches()}) > 2
    assert backend.graphs == 1
    assert set(backend.batches) == {7}


class Pair(NamedTuple):
    """Inputs as a named tuple."""

    tokens: Tensor
    lengths: Tensor | None


def test_filling_a_batch_repeats_its_last_sample() -> None:
    tokens, lengths, scale = torch.arange(6).view(3, 2), torch.tensor([2, 1, 2]), torch.tensor(0.5)
    wanted = torch.tensor([[0, 1], [2, 3], [4, 5], [4, 5], [4, 5]])
    assert torch.equal(compiled.filled(tokens, 5), wanted)
    assert torch.equal(compiled.filled(tokens, 3), tokens)
    as_mapping = compiled.filled({"tokens": tokens, "more": [lengths, scale, "mean"]}, 5)
    assert torch.equal(as_mapping["tokens"], wanted)
    assert as_mapping["more"][0].tolist() == [2, 1, 2, 2, 2]
    assert as_mapping["more"][1:] == [scale, "mean"]
    first, second = compiled.filled((tokens, lengths), 4)
    assert (len(first), len(second)) == (4, 4)
    pair = compiled.filled(Pair(tokens, None), 5)
    assert torch.equal(pair.tokens, wanted)
    assert pair.lengths is None


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (object(), "gives a object without tensors"),
        ({"size": 3}, "gives a dict without tensors"),
        ((torch.zeros(9), torch.zeros(3)), r"gives tensors of lengths \[3, 9\]"),
    ],
)
def test_a_batch_that_cannot_be_filled(inputs: Any, says: str) -> None:
    with pytest.raises(
        MixoptError, match=rf"^--compile: the family's collate {says}; expected .* leave out --compile$"
    ):
        compiled.filled(inputs, 5)


def a_backend_that_fails(*_: Any) -> Any:
    raise RuntimeError("no compiler\nand more of it")


def asking(images: Tensor) -> Tensor:
    """Looks at a value: what torch cannot trace."""
    return images if float(images.sum()) > 0 else -images


def each_compiled(run_compiled: Callable[..., Tensor], models: list[nn.Linear]) -> None:
    for model in models:
        run_compiled(model, torch.ones(2, 2))


def test_what_cannot_be_compiled_is_one_error(
    backend: Counting, clip_pool_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_compiled = compiled.compiled_pass(torch.device("cpu"))
    told = "^--compile: torch.compile cannot compile the model's forward pass on cpu .*; leave out --compile$"
    with pytest.raises(MixoptError, match=told):
        run_compiled(asking, torch.ones(2, 2))
    # A model that is another one for every mix is not run partly without being compiled.
    with pytest.raises(MixoptError, match=told):
        each_compiled(run_compiled, [nn.Linear(2, size) for size in range(1, 50)])
    assert 1 < backend.graphs < 49
    monkeypatch.setattr(compiled, "BACKEND", a_backend_that_fails)
    with pytest.raises(MixoptError, match=r"on cpu \(RuntimeError: no compiler\); leave out --compile$"):
        opened(clip_pool_template, tmp_path, compile=True)


def test_errors_of_the_pass_itself_stay_what_they_are(backend: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    run_compiled = compiled.compiled_pass(torch.device("cpu"))
    assert run_compiled(nn.Flatten(), torch.ones(2, 2, 2)).shape == (2, 4)
    monkeypatch.setattr(backend, "ran", full)
    with pytest.raises(torch.OutOfMemoryError):
        run_compiled(nn.Flatten(), torch.ones(2, 2, 2))
