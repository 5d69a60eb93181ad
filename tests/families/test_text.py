"""A family of one's own, in a picture: a classifier of texts, from ``.jsonl`` files to a searched mix."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mixopt
from mixopt import DataError, Encoding, load_spec, open_objective
from mixopt.values.groups import make_groups
from tests.conftest import random_mix
from tests.listening import Recorder

# What a user writes

WORDS = 50


class BagOfWords(nn.Module):
    """The mean of the words' embeddings, and a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 12)
        self.head = nn.Linear(12, classes)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Tokens ``[b, longest]``, of which the first ``lengths`` ``[b]`` count, to logits ``[b, classes]``."""
        counts = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        mean = (self.words(tokens) * counts[:, :, None]).sum(dim=1) / lengths.clamp(min=1)[:, None]
        logits: Tensor = self.head(mean)
        return logits


def encode(record: dict[str, Any]) -> dict[str, Any]:
    """Each word to its hash."""
    return {"tokens": np.array([zlib.crc32(word.encode()) % WORDS for word in record["text"].split()], dtype=np.int64)}


def collate(arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens, and how many of each row are not padding."""
    return arrays["tokens"], arrays["tokens_length"]


def texts(classnames: tuple[str, ...]) -> tuple[nn.Module, Any, Encoding]:
    """The family: what ``--family tests.families.test_text:texts`` names."""

    def predict(module: nn.Module) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
        return lambda batch: torch.as_tensor(module(*batch))

    return BagOfWords(len(classnames)), predict, Encoding(encode, collate, "hashed words 1")


# Its pool

CLASSES = ("sad", "glad", "angry")  # not in the order of the alphabet
OPTIONS: dict[str, Any] = {"device": "cpu", "batch_size": 7, "precision": "fp32"}


def write_texts(path: Path, count: int, seed: int) -> None:
    """Texts of 0 to 12 words, most of them from the class's own thirds of the words."""
    random = np.random.default_rng(seed)
    with path.open("w") as stream:
        for label in random.integers(0, 3, count):
            own = random.random(random.integers(0, 13)) < 0.6
            words = np.where(own, 30 * label + random.integers(0, 30, len(own)), random.integers(0, 90, len(own)))
            record = {"id": "x", "text": " ".join(f"word{word}" for word in words), "label": CLASSES[label]}
            stream.write(json.dumps(record) + "\n")


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


def write_text_pool(folder: Path) -> Path:
    """A base and four models tuned from it, each on texts of its own; a validation and a test split."""
    folder.mkdir()
    for name, count, seed in (("val", 60, 0), ("test", 45, 1), *((f"train_{n}", 60, 10 + n) for n in range(4))):
        write_texts(folder / f"{name}.jsonl", count, seed)
    torch.manual_seed(0)
    model = BagOfWords(len(CLASSES))
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(base, folder / "base.safetensors")
    for number in range(4):
        model.load_state_dict(base)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for line in (folder / f"train_{number}.jsonl").read_text().splitlines() * 2:
            record = json.loads(line)
            tokens = torch.from_numpy(encode(record)["tokens"])[None]
            logits = model(tokens, torch.tensor([tokens.shape[1]]))
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(logits, torch.tensor([CLASSES.index(record["label"])])))
            optimizer.step()
        save_file(model.state_dict(), folder / f"model_{number}.safetensors")
    (folder / "pool.toml").write_text(
        f'family = "{__name__}:texts"\nbase = "base.safetensors"\nclassnames = {json.dumps(CLASSES)}\n'
        '[data]\nsearch = "val.jsonl"\n[data.test]\ntest = "test.jsonl"\n'
    )
    return folder


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
    assert heard.warnings == ["3 samples of test split test are in the selection split too"], "those of no words"

    again = mixopt.evaluate(
        result.folder / "model.safetensors", verify=True, data={"search": text_pool / "test.jsonl"}, **options
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
