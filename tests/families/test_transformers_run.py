"""A pool of transformers' models from the folder to the run, and the run in transformers itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import mixopt
from mixopt.errors import PoolError, RunError
from tests.listening import Recorder
from tests.tiny_transformers import LABELS, WORDS, text_config, write_text_model, write_text_pool

RECORDS = 40


def write_split(path: Path, seed: int) -> Path:
    """Sentences of random words, of many lengths, with the labels' names."""
    random = np.random.default_rng(seed)
    with path.open("w") as lines:
        for number in range(RECORDS):
            text = " ".join(random.choice(WORDS, random.integers(1, 14)))
            lines.write(json.dumps({"text": text, "label": LABELS[number % 2]}) + "\n")
    return path


def flat(folder: Path) -> Path:
    """The checkpoints of a Trainer's output as files beside one config and tokenizer."""
    write_text_pool(folder / "out")
    for place in sorted((folder / "out").iterdir()):
        shutil.copy(place / "model.safetensors", folder / f"{place.name}.safetensors")
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copy(place / name, folder / name)
    shutil.rmtree(folder / "out")
    return folder


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    data = {"search": write_split(tmp_path / "val.jsonl", 0), "test": {"test": write_split(tmp_path / "test.jsonl", 1)}}
    return {"data": data, "cache": tmp_path / "cache", "out": tmp_path / "run", "device": "cpu", "precision": "fp32"}


def test_the_run_loads_in_transformers_with_the_reports_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    pool = flat(tmp_path / "pool")
    heard = Recorder()
    result = mixopt.compare(pool, family="transformers", methods="uniform,greedy", listener=heard.listener, **options)
    run = options["out"]
    model, info = AutoModelForSequenceClassification.from_pretrained(run, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(LABELS))
    tokenizer = AutoTokenizer.from_pretrained(run)
    for split, path in (("validation", options["data"]["search"]), ("test", options["data"]["test"]["test"])):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        losses, correct = [], []
        with torch.inference_mode():
            for row in rows:
                logits = model(**tokenizer(row["text"], truncation=True, return_tensors="pt")).logits[0].double()
                label = LABELS.index(row["label"])
                losses.append(float(torch.logsumexp(logits, 0) - logits[label]))
                correct.append(int(logits.argmax()) == label)
        found = mixopt.evaluate(run / "model.safetensors", data={"search": path}, cache=options["cache"], device="cpu")
        (metrics,) = (each["metrics"] for each in found["splits"].values())
        assert metrics["nll"] == pytest.approx(np.mean(losses), abs=1e-6)
        assert metrics["accuracy"] == pytest.approx(np.mean(correct))
        best = next(row for row in result.report.methods if row.name == result.report.best)
        report = best.search if split == "validation" else best.test[split]
        assert report == pytest.approx(metrics["accuracy"])
    assert any("texts are longer than the model's 12 tokens" in text for text in heard.infos)

    again = mixopt.compare(pool, family="transformers", methods="uniform,greedy", **options)
    assert again.report.as_dict()["best"] == result.report.as_dict()["best"], "the same run goes into its own folder"


def test_a_config_of_somebody_elses_is_not_replaced(tmp_path: Path, options: dict[str, Any]) -> None:
    pool = flat(tmp_path / "pool")
    options["out"].mkdir()
    (options["out"] / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"not a run folder, but not empty either \(it holds config\.json\)"):
        mixopt.compare(pool, family="transformers", methods="uniform", **options)


def test_models_of_other_sizes_are_one_error(tmp_path: Path, options: dict[str, Any]) -> None:
    pool = flat(tmp_path / "pool")
    write_text_model(tmp_path / "wide", 0, text_config(intermediate_size=32, labels=("a", "b", "c")))
    shutil.copy(tmp_path / "wide" / "model.safetensors", pool / "wide.safetensors")
    with pytest.raises(
        PoolError, match=r"wide: bert\.encoder\.layer\.0\.intermediate\.dense\.weight has shape \[32, 16\]"
    ):
        mixopt.compare(pool, family="transformers", methods="uniform", **options)
