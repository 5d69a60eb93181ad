"""A family of one's own, in a picture: a classifier of texts, from ``.jsonl`` files to a searched mix."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mixopt
from mixopt import DataError, load_spec, open_objective
from mixopt.values.groups import make_groups
from tests.conftest import random_mix
from tests.listening import Recorder
from tests.text_family import CLASSES, OPTIONS, BagOfWords, encode, write_text_pool

# What a user writes


# Its pool


def own_outcomes(state: dict[str, Tensor], path: Path) -> tuple[float, float]:
    """Accuracy and mean loss by the user's own loop: one text after the other, nothing padded."""
    model = BagOfWords(len(CLASSES))
    model.load_state_dict(state)
    hits, losses = [], []
    for line in path.read_text().splitlines():
        record = json.loads(line)
        tokens = torch.from_numpy(encode(record)["tokens"])[None]
        label = torch.tensor([CLASSES.index(record["label"])])
        with torch.no_grad():
            logits = model(tokens, torch.tensor([tokens.shape[1]]))
        hits.append(int(logits.argmax()) == int(label))
        losses.append(float(nn.functional.cross_entropy(logits, label)))
    return float(np.mean(hits)), float(np.mean(losses))


@pytest.fixture(scope="module")
def text_pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_pool(tmp_path_factory.mktemp("texts") / "pool")


# What mixopt does with it


def test_search_and_evaluate(text_pool: Path, tmp_path: Path) -> None:
    options = {**OPTIONS, "cache": tmp_path / "cache"}
    heard = Recorder()
    result = mixopt.search(text_pool, out=tmp_path / "run", trials=6, metric="nll", listener=heard.listener, **options)
    assert result.report.trials == {"complete": 6}
    rows = {row["name"]: row for row in result.report.as_dict()["methods"]}
    assert rows["search"]["search"] <= rows["individual"]["search"] + 1e-6 < rows["base"]["search"]
    saved = load_file(result.folder / "model.safetensors")
    for split, score in (("val", rows["search"]["search"]), ("test", rows["search"]["test"]["test"])):
        assert score == pytest.approx(own_outcomes(saved, text_pool / f"{split}.jsonl")[1], abs=1e-5)
    base = own_outcomes(load_file(text_pool / "base.safetensors"), text_pool / "val.jsonl")
    assert rows["base"]["search"] == pytest.approx(base[1], abs=1e-5)
    assert heard.warnings == ["3 samples of test split test are in the validation split too"], "those of no words"

    again = mixopt.evaluate(
        result.folder / "model.safetensors",
        verify=True,
        family="tests.text_family:texts",
        data={"search": text_pool / "test.jsonl"},
        **options,
    )
    accuracy, loss = own_outcomes(saved, text_pool / "test.jsonl")
    assert again["splits"]["test"]["metrics"]["nll"] == pytest.approx(loss, abs=1e-5)
    assert again["splits"]["test"]["metrics"]["accuracy"] == pytest.approx(accuracy)


def test_compare(text_pool: Path, tmp_path: Path) -> None:
    result = mixopt.compare(
        text_pool,
        methods=["individual", "uniform", "greedy", "wise_ft", "learned", "greedy_ensemble"],
        out=tmp_path / "run",
        cache=tmp_path / "cache",
        metric="accuracy",
        **OPTIONS,
    )
    assert not result.failed
    rows = {row["name"]: row for row in result.report.as_dict()["methods"]}
    states = [load_file(text_pool / f"model_{number}.safetensors") for number in range(4)]
    best = max(own_outcomes(state, text_pool / "val.jsonl")[0] for state in states)
    assert rows["individual"]["search"] == pytest.approx(best)
    soup = {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
    for split, score in (("val", rows["uniform"]["search"]), ("test", rows["uniform"]["test"]["test"])):
        assert score == pytest.approx(own_outcomes(soup, text_pool / f"{split}.jsonl")[0])


def test_batches_of_any_size_give_the_same_scores(text_pool: Path, tmp_path: Path) -> None:
    """Each batch is as long as its longest text."""
    outcomes = []
    for size in (1, 7, 100):
        options = {**OPTIONS, "batch_size": size, "cache": tmp_path / str(size), "models": text_pool}
        objective = open_objective(load_spec(options))
        mix = random_mix(make_groups("tensor", objective.pool.sizes), objective.pool.columns)
        outcomes.append(objective.score(mix, "test").outcomes)
        evaluator: Any = objective.evaluators["test"]
        longest = {batch[0].shape[1] for batch, _ in evaluator.batches()}
        assert len(longest) == 1 if size == 100 else len(longest) > 1
    for other in outcomes[1:]:
        assert other.losses == pytest.approx(outcomes[0].losses, abs=1e-5)


def test_shifts_are_for_images_alone(text_pool: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val\.jsonl: its samples are not images \(tokens, tokens_length\)"):
        mixopt.search(
            text_pool, trials=1, shifts="synthetic", out=tmp_path / "run", cache=tmp_path / "cache", **OPTIONS
        )


def test_images_for_a_family_of_texts(text_pool: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "val.npz", x=np.zeros((6, 4, 4, 3), np.uint8), y=np.arange(6) % 3)
    with pytest.raises(DataError, match=r"val\.npz: the family's encode cannot take an image \[4, 4, 3\]"):
        open_objective(load_spec({"models": text_pool, "cache": tmp_path, "data": {"search": tmp_path / "val.npz"}}))


@pytest.mark.parametrize("metric", ["f1_macro", "matthews", "worst_class_recall", "ece", "top2"])
def test_a_search_by_a_metric_of_whole_counts(metric: str, text_pool: Path, tmp_path: Path) -> None:
    """Racing, confirmation, intervals and the report take its samples' shares; the file gives the value again."""
    options = {**OPTIONS, "cache": tmp_path / "cache", "sampler": "random"}
    result = mixopt.search(text_pool, out=tmp_path / "run", trials=4, metric=metric, **options)
    row = result.report.row("search")
    assert result.report.metric == metric
    assert row.metrics["validation"][metric] == row.search
    assert row.interval["test"][0] <= row.test["test"] <= row.interval["test"][1]
    assert set(row.paired_p) == {"individual", "greedy"}
    again = mixopt.evaluate(
        result.folder / "model.safetensors",
        family="tests.text_family:texts",
        data={"search": text_pool / "test.jsonl"},
        **OPTIONS,
    )
    assert again["metric"] == metric
    assert again["splits"]["test"]["metrics"][metric] == pytest.approx(row.test["test"], abs=1e-5)
