"""A pool of transformers' models from the folder to the run, and the run in transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

import mixopt
from mixopt.errors import CheckpointError, PoolError
from tests.listening import Recorder
from tests.tiny_transformers import (
    LABELS,
    text_config,
    write_adapters,
    write_image_pool,
    write_sentences,
    write_text_model,
    write_text_pool,
)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    data = {
        "search": write_sentences(tmp_path / "val.jsonl", 0),
        "test": {"test": write_sentences(tmp_path / "test.jsonl", 1)},
    }
    return {"data": data, "cache": tmp_path / "cache", "out": tmp_path / "run", "device": "cpu", "precision": "fp32"}


def own_metrics(run: Path, path: Path) -> dict[str, float]:
    """What transformers itself makes of a run folder's model, sentence by sentence."""
    model, info = AutoModelForSequenceClassification.from_pretrained(run, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(run)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(LABELS))
    losses, correct = [], []
    with torch.inference_mode():
        for line in path.read_text().splitlines():
            row = json.loads(line)
            logits = model(**tokenizer(row["text"], truncation=True, return_tensors="pt")).logits[0].double()
            label = LABELS.index(row["label"])
            losses.append(float(torch.logsumexp(logits, 0) - logits[label]))
            correct.append(int(logits.argmax()) == label)
    return {"nll": float(np.mean(losses)), "accuracy": float(np.mean(correct))}


def check_run(result: Any, options: dict[str, Any]) -> None:
    """The run loads in transformers, and has there the scores of the report."""
    run, data = options["out"], options["data"]
    best = next(row for row in result.report.methods if row.name == result.report.best)
    for path, score in ((data["search"], best.search), (data["test"]["test"], best.test["test"])):
        theirs = own_metrics(run, path)
        found = mixopt.evaluate(run / "model.safetensors", data={"search": path}, cache=options["cache"], device="cpu")
        (own,) = (each["metrics"] for each in found["splits"].values())
        assert own["nll"] == pytest.approx(theirs["nll"], abs=1e-6)
        assert own["accuracy"] == score == pytest.approx(theirs["accuracy"])


def rebuilt(run: Path, to: Path, **more: Any) -> bool:
    """Whether building a run's recipe gives the same bytes."""
    return mixopt.build(run / "recipe.json", to, **more).read_bytes() == (run / "model.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_trainers_output_from_the_folder_to_transformers(kind: str, tmp_path: Path, options: dict[str, Any]) -> None:
    pool, heard = write_text_pool(tmp_path / "out", kind=kind), Recorder()
    wanted: dict[str, Any] = {"family": "transformers", "methods": "uniform,greedy", **options}
    result = mixopt.compare(pool, listener=heard.listener, **wanted)
    check_run(result, options)
    assert rebuilt(options["out"], tmp_path / "again.safetensors")
    assert any("texts are longer than the model's 12 tokens" in text for text in heard.infos)
    again = mixopt.compare(pool, **wanted)
    assert again.report.best == result.report.best, "the same run goes into its own folder"


def test_adapters_from_the_folder_to_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    write_text_model(tmp_path / "base", 1)
    pool, heard = write_adapters(tmp_path / "adapters", tmp_path / "base"), Recorder()
    wanted: dict[str, Any] = {"family": "transformers", "methods": "uniform,greedy,wise_ft", **options}
    result = mixopt.compare(pool, base=tmp_path / "base", listener=heard.listener, **wanted)
    check_run(result, options)
    assert {row.name for row in result.report.methods} >= {"base", "uniform", "greedy", "wise_ft"}
    assert f"3 peft adapters are merged into {tmp_path}/base, each by peft itself, and mixed as models" in heard.infos
    assert rebuilt(options["out"], tmp_path / "again.safetensors"), "from what was merged into the cache"
    named = mixopt.compare(pool, **{**wanted, "out": tmp_path / "named"})
    assert named.recipe.ingredients == result.recipe.ingredients, "the base that they name is the same one"
    inspected = mixopt.inspect(pool, base=tmp_path / "base", family="transformers", cache=options["cache"])
    assert not inspected["problems"]


def test_adapters_alone_ask_for_their_base(tmp_path: Path, options: dict[str, Any]) -> None:
    write_text_model(tmp_path / "base")
    pool = write_adapters(tmp_path / "adapters", tmp_path / "base")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=r"adapter_0, adapter_1, adapter_2: peft adapters.*--base FOLDER"):
        mixopt.compare(pool, family="transformers", methods="uniform", **options)


def test_a_base_without_a_head_is_merged_into_and_no_row(tmp_path: Path, options: dict[str, Any]) -> None:
    write_text_model(tmp_path / "base")
    pool, heard = write_adapters(tmp_path / "adapters", tmp_path / "base"), Recorder()
    state = load_file(tmp_path / "base" / "model.safetensors")
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("classifier")}
    save_file(headless, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    wanted: dict[str, Any] = {"family": "transformers", "methods": "uniform", "base": tmp_path / "base", **options}
    result = mixopt.compare(pool, listener=heard.listener, **wanted)
    check_run(result, options)
    assert result.recipe.base is None
    assert any("which each adapter brings: the base is no row itself" in text for text in heard.infos)


def test_a_pretrained_base_gets_the_adapters_head(tmp_path: Path, options: dict[str, Any]) -> None:
    write_text_model(tmp_path / "base")
    pool, heard = write_adapters(tmp_path / "adapters", tmp_path / "base"), Recorder()
    state = load_file(tmp_path / "base" / "model.safetensors")
    encoder = {name.removeprefix("bert."): x for name, x in state.items() if not name.startswith("classifier")}
    save_file(encoder, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    (tmp_path / "base" / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    wanted: dict[str, Any] = {"methods": "uniform", "base": tmp_path / "base", **options}
    result = mixopt.compare(pool, classnames=LABELS, listener=heard.listener, **wanted)
    assert any("describes no classifier; the adapters' head of 2 classes is put on it" in text for text in heard.infos)
    assert result.recipe.base is None
    theirs = own_metrics(options["out"], options["data"]["search"])
    assert next(row for row in result.report.methods if row.name == "uniform").search == theirs["accuracy"]


def test_a_checkpoint_is_evaluated_by_its_own_config(tmp_path: Path, options: dict[str, Any]) -> None:
    write_text_model(tmp_path / "out" / "checkpoint-1", 1, text_config(labels=LABELS[::-1]))
    write_text_model(tmp_path / "out" / "checkpoint-2", 2)
    data = {"data": {"search": options["data"]["search"]}, "cache": options["cache"]}
    (found,) = mixopt.evaluate(tmp_path / "out" / "checkpoint-2", family="transformers", **data)["splits"].values()
    theirs = own_metrics(tmp_path / "out" / "checkpoint-2", options["data"]["search"])
    assert found["metrics"]["nll"] == pytest.approx(theirs["nll"], abs=1e-6)
    model = str(tmp_path / "out" / "checkpoint-1")
    with pytest.raises(CheckpointError, match=r"order \[negative, positive\], expected \[positive, negative\]"):
        mixopt.evaluate(tmp_path / "out" / "checkpoint-2", family="transformers", model=model, **data)


def test_images_from_the_folder_to_transformers(tmp_path: Path, options: dict[str, Any]) -> None:
    pool = write_image_pool(tmp_path / "pool")
    random = np.random.default_rng(0)
    x, y = random.integers(0, 256, (30, 20, 24, 3), dtype=np.uint8), np.arange(30) % 3
    np.savez(tmp_path / "val.npz", x=x, y=y)
    data = {"data": {"search": tmp_path / "val.npz"}}
    mixopt.compare(pool, family="transformers", methods="uniform", **{**options, **data})
    run = options["out"]
    model = AutoModelForImageClassification.from_pretrained(run)
    images = AutoImageProcessor.from_pretrained(run)([Image.fromarray(each) for each in x], return_tensors="pt")
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(model(**images).logits, torch.from_numpy(y))
    found = mixopt.evaluate(run / "model.safetensors", data={"search": tmp_path / "val.npz"}, cache=options["cache"])
    (own,) = (each["metrics"] for each in found["splits"].values())
    assert own["nll"] == pytest.approx(float(loss), abs=1e-5)
    assert rebuilt(run, tmp_path / "again.safetensors"), "by names that its library has in memory"
    on_disk = load_file(pool / "model_0" / "model.safetensors").keys()
    assert load_file(run / "model.safetensors").keys() == on_disk, "older releases know no others"
    assert on_disk != model.state_dict().keys(), "control: this release has others in memory"


def test_labels_of_ingredients_are_compared_before_work(tmp_path: Path, options: dict[str, Any]) -> None:
    pool = write_text_pool(tmp_path / "out")
    write_text_model(pool / "checkpoint-20", 3, text_config(labels=("negative", "neutral", "positive")))
    write_text_model(pool / "checkpoint-30", 3, text_config(intermediate_size=32))
    with pytest.raises(PoolError) as caught:
        mixopt.compare(pool, family="transformers", methods="uniform", **options)
    assert "checkpoint-20: its config.json differs" in str(caught.value)
    assert "it has 3 labels, expected 2" in str(caught.value)
    assert "intermediate_size is 32, expected 24" in str(caught.value)
