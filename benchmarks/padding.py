"""Texts in batches of like lengths against batches in the split's order, by one evaluator, in one run.

    OMP_NUM_THREADS=1 python benchmarks/padding.py --model FOLDER --data val.jsonl [--batch-size 100] [--repeats 5]

FOLDER holds an encoder that transformers loads, with its tokenizer; its head is random, as no accuracy is claimed.
Without one, a tiny random BERT reads the words of the texts (for the tests). A row is the median of its repeats, which
take turns. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from mixopt import Encoding, Samples
from mixopt.scoring.batches import Batches, padding_share, plain_batches
from mixopt.scoring.evaluator import Evaluator

WORDS = 1000


def opened(folder: str | None) -> tuple[nn.Module, Callable[[str], list[int]]]:
    """The model, and its tokens of a text."""
    torch.manual_seed(0)
    if folder is None:
        config = BertConfig(
            vocab_size=WORDS, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
        return BertForSequenceClassification(config), lambda text: [
            1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in text.split()
        ]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True, num_labels=2)
    return model, lambda text: list(tokenizer(text, truncation=True)["input_ids"])


def split_of(texts: Sequence[str], tokens_of: Callable[[str], list[int]]) -> Samples:
    """The texts in a random order, as a split; labels are all 0."""
    every = [tokens_of(texts[place]) for place in np.random.default_rng(0).permutation(len(texts))]
    tokens = np.zeros((len(every), max(map(len, every))), dtype=np.int64)
    for row, found in zip(tokens, every, strict=True):
        row[: len(found)] = found
    lengths = np.array([len(found) for found in every], dtype=np.int64)
    digests = np.zeros((len(every), 16), dtype=np.uint8)
    arrays = {"tokens": tokens, "tokens_length": lengths}
    return Samples("validation", "texts", arrays, np.zeros(len(every), dtype=np.int64), digests)


def collate(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tokens, and a mask of those that are no padding."""
    tokens, lengths = arrays["tokens"], arrays["tokens_length"]
    mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    return {"input_ids": tokens, "attention_mask": mask.long()}


def batches_in(batching: Batches, count: int, most: int) -> list[Any]:
    """The batches of a pass over all."""
    through, place, found = batching.between(0, count), 0, []
    while place < count:
        found.append(through.batch(place, most))
        place += through.size(place, most)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--confirm", type=float, default=0.2)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(arguments)
    model, tokens_of = opened(given.model)
    texts = [json.loads(line)["text"] for line in given.data.read_text(encoding="utf-8").splitlines()]
    split, device = split_of(texts, tokens_of), torch.device(given.device)
    model = model.to(device).eval()
    count, cut = len(split), max(1, len(split) - round(given.confirm * len(split)))
    encoding = Encoding(lambda record: record, collate, "tokens")
    evaluators = {
        name: Evaluator(split, encoding, device, given.batch_size, cut=cut) for name in ("in order", "by length")
    }
    evaluators["in order"].batching = plain_batches(count, cut)

    def predict(inputs: dict[str, Tensor]) -> Any:
        return model(**inputs)

    seconds: dict[str, list[float]] = {name: [] for name in evaluators}
    losses = {}
    for repeat in range(given.repeats + 1):
        for name, evaluator in evaluators.items():
            started = time.perf_counter()
            losses[name] = evaluator.run(predict).losses
            if repeat or given.repeats == 1:
                seconds[name].append(time.perf_counter() - started)
    rows = []
    print("batches      number  padding  seconds  texts/s")
    for name, evaluator in evaluators.items():
        batches = batches_in(evaluator.batching, count, given.batch_size)
        spent, share = statistics.median(seconds[name]), padding_share(split.arrays, batches)
        rows.append({"way": name, "batches": len(batches), "padding": share, "seconds": spent})
        print(f"{name:11} {len(batches):7} {share:8.1%} {spent:8.2f} {count / spent:8,.0f}")
    pairs = zip(seconds["in order"], seconds["by length"], strict=True)
    faster = statistics.median(plain / sorted_ for plain, sorted_ in pairs)
    differ = float(np.max(np.abs(losses["in order"] - losses["by length"])))
    print(f"by length is {faster:.2f} times as fast; losses differ by at most {differ:.1e}")
    line = {"benchmark": "padding", "texts": count, "batch_size": given.batch_size, "rows": rows}
    print(json.dumps({**line, "times_faster": faster, "differ": differ, "threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
