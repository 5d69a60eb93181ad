"""Tiny models of transformers' in folders, as its own classes save them: random weights, a vocabulary written here."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

LABELS = ("negative", "positive")
WORDS = ("a", "b", "good", "bad", "film", "plot", "dull", "fine", "##ly", "##ish", ",", ".")
VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS)
LONGEST = 12
SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": LONGEST,
    "vocab_size": len(VOCABULARY),
}
DISTIL = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": LONGEST}
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "patch_size": 8}
VIT |= {"image_size": 16}


def named(labels: Sequence[str]) -> dict[str, Any]:
    """What a config says of its labels."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: number for number, label in enumerate(labels)}}


def text_config(kind: str = "bert", labels: Sequence[str] = LABELS, **more: Any) -> Any:
    """A tiny config of a model of texts."""
    sizes = {**DISTIL, "vocab_size": len(VOCABULARY)} if kind == "distilbert" else SMALL
    return transformers.CONFIG_MAPPING[kind](**{**sizes, **named(labels), **more})


def write_tokenizer(folder: Path) -> None:
    """A WordPiece tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = transformers.BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=LONGEST)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.txt").unlink(missing_ok=True)


def write_text_model(folder: Path, seed: int = 0, config: Any = None, start: Mapping[str, Any] | None = None) -> Any:
    """A model of texts and its tokenizer; a little away from a start, where one is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_config(config or text_config())
        return _written(model, folder, start)


def write_text_pool(folder: Path, count: int = 3, kind: str = "bert") -> Path:
    """A Trainer's output: ``checkpoint-<n>`` folders around one start."""
    start = AutoModelForSequenceClassification.from_config(text_config(kind)).state_dict()
    for number in range(count):
        write_text_model(folder / f"checkpoint-{10 * number + 10}", number, text_config(kind), start)
    return folder


def write_sentences(path: Path, seed: int, count: int = 40) -> Path:
    """A ``.jsonl`` of sentences of random words, of many lengths, with the labels' names."""
    random = np.random.default_rng(seed)
    with path.open("w") as lines:
        for number in range(count):
            text = " ".join(random.choice(WORDS, random.integers(1, LONGEST + 2)))
            lines.write(json.dumps({"text": text, "label": LABELS[number % 2]}) + "\n")
    return path


def write_adapters(folder: Path, base: Path, count: int = 3, **more: Any) -> Path:
    """LoRA adapters of a base, each with a head, as after training: ``adapter_<n>`` folders."""
    import peft

    model = AutoModelForSequenceClassification.from_pretrained(base, local_files_only=True)
    for number in range(count):
        wanted = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"], **more}
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(number)
            adapted: Any = peft.get_peft_model(deepcopy(model), peft.LoraConfig(**wanted))
            with torch.no_grad():
                for weight in adapted.parameters():
                    if weight.requires_grad:
                        weight.add_(0.1 * torch.randn_like(weight))
            adapted.save_pretrained(folder / f"adapter_{number}")
    return folder


def write_image_pool(folder: Path, count: int = 3) -> Path:
    """Vision transformers around one start."""
    start = write_image_model(folder / "model_0").state_dict()
    for number in range(1, count):
        write_image_model(folder / f"model_{number}", number, start)
    return folder


def write_image_model(folder: Path, seed: int = 0, start: Mapping[str, Any] | None = None) -> Any:
    """A vision transformer and its image processor."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = transformers.ViTConfig(**VIT, **named(("red", "green", "blue")))
        model = _written(AutoModelForImageClassification.from_config(config), folder, start)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return model


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer that transformers itself opens."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def _written(model: Any, folder: Path, start: Mapping[str, Any] | None) -> Any:
    if start is not None:
        model.load_state_dict({name: x + 0.05 * torch.randn_like(x) for name, x in start.items()})
    model.eval().save_pretrained(folder)
    if not isinstance(model.config, transformers.ViTConfig):
        write_tokenizer(folder)
    return model
