"""A trial's time against the forward pass alone, and the two ways of a naive evaluation, in one run.

    OMP_NUM_THREADS=1 python benchmarks/evaluator.py --models DIR [--limit 2000]

``forward``: the model's own forward over batches that are ready in memory, the floor. ``trial``: what a search pays
for a mix (fuse, evaluate, metrics, cache write). ``naive``: the same mix by a loop over state dicts, then a
``DataLoader`` over the decoded images. ``outside``: the share of a trial that is not the model's forward pass, timed
within the trial. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mixopt import load_spec
from mixopt.assemble import assemble
from mixopt.assemble.family import family_of
from mixopt.listener import Listener
from mixopt.scoring.evaluator import Predict
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix
from mixopt.weights import checkpoints


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", required=True)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        # All images, and in the precision of the other two ways.
        same = {"device": "cpu", "confirm": 0.0, "precision": "fp32"}
        spec = load_spec({"models": arguments.models, "limit": arguments.limit, "cache": Path(cache), **same})
        assembly = assemble(spec, Listener())
        objective, family = assembly.objective, assembly.family
        pool = objective.pool
        evaluator: Any = objective.evaluators["validation"]
        other = family_of(spec)  # a family of its own, so that the trial's keeps its zero-shot head
        module = other.build().eval()
        states = {name: checkpoints.read(path).tensors for name, path in pool.paths.items()}
        module.load_state_dict(states[pool.columns[0]])
        batches = list(evaluator.batches())
        groups = make_groups("4", pool.sizes)
        random = np.random.default_rng(0)

        def forward() -> None:
            with torch.inference_mode():
                predict = other.predict(module, frozenset(module.state_dict()))
                for images, _ in batches:
                    predict(images)

        def mix() -> Mix:
            return Mix(groups, pool.columns, random.dirichlet(np.ones(len(pool.columns)), size=len(groups)))

        def naive() -> None:
            rows, group_of = mix().coefficients, groups.index()
            fused = dict(states[pool.columns[0]])
            for name, group in group_of.items():
                total = states[pool.columns[0]][name].float() * float(rows[group, 0])
                for i, column in enumerate(pool.columns[1:], start=1):
                    total = total + states[column][name].float() * float(rows[group, i])
                fused[name] = total
            module.load_state_dict(fused)
            images = torch.from_numpy(np.array(evaluator.split.arrays["images"]))
            loader = DataLoader(TensorDataset(images, torch.from_numpy(evaluator.split.labels)), batch_size=100)
            with torch.inference_mode():
                predict = other.predict(module, frozenset())
                for raw, _ in loader:
                    predict(family.encoding.collate({"images": raw})).argmax(1)

        inside = [0.0]
        plain = family.predict
        swapped: Any = family

        def timed(model: nn.Module, fixed: frozenset[str]) -> Predict:
            predict = plain(model, fixed)

            def logits(images: Tensor) -> Tensor:
                started = time.perf_counter()
                result: Tensor = predict(images)
                inside[0] += time.perf_counter() - started
                return result

            return logits

        shares = []
        times: dict[str, list[float]] = {"forward": [], "trial": [], "naive": []}
        # Interleaved, so that a slow moment of the machine meets all three alike.
        for repeat in range(arguments.repeats + 1):
            for name, work in (("forward", forward), ("trial", lambda: objective.score(mix())), ("naive", naive)):
                swapped.predict = timed if name == "trial" else plain
                inside[0] = 0.0
                started = time.perf_counter()
                work()
                if repeat and name == "trial":
                    shares.append(1 - inside[0] / (time.perf_counter() - started))
                if repeat:
                    times[name].append(time.perf_counter() - started)
        ratios = {
            name: statistics.median(a / b for a, b in zip(times[name], times["forward"], strict=True)) for name in times
        }
    for name, measured in times.items():
        seconds = statistics.median(measured)
        print(f"{name:8} {seconds:7.3f} s  {arguments.limit / seconds:7.0f} images/s  {ratios[name]:.3f} x forward")
    outside = statistics.median(shares)
    print(f"outside the forward pass: {outside:.1%} of a trial")
    threads = torch.get_num_threads()
    print(json.dumps({"benchmark": "evaluator", "threads": threads, "outside": outside, "ratios": ratios}))


if __name__ == "__main__":
    main()
