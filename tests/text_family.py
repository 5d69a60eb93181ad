"""A family for records that are not images, as a user would write it: a bag of word embeddings, and a pool of it."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mixopt import Encoding

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
    """The family: what ``--family tests.text_family:texts`` names."""

    def predict(module: nn.Module) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
        return lambda batch: torch.as_tensor(module(*batch))

    return BagOfWords(len(classnames)), predict, Encoding(encode, collate, "hashed words 1")


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
        f'family = "tests.text_family:texts"\nbase = "base.safetensors"\nclassnames = {json.dumps(CLASSES)}\n'
        '[data]\nsearch = "val.jsonl"\n[data.test]\ntest = "test.jsonl"\n'
    )
    return folder
