"""StudySpec to Objective: the only importer of families and data sources."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from mixopt import families
from mixopt.assemble.engine import bare_engine, recomputing
from mixopt.assemble.engine import saved_dtype as saved_dtype
from mixopt.assemble.family import check_data, family_of, tell_of
from mixopt.data.own import driving_metric, own_functions, with_own
from mixopt.data.splits import add_steering
from mixopt.data.splits import open_splits as open_splits_of
from mixopt.errors import DataError
from mixopt.families.opening import open_pool_of as open_pool_of
from mixopt.families.opening import opening_of as opening_of
from mixopt.families.opening import reader_of as reader_of
from mixopt.ingredients import found_notices, ingredient_files
from mixopt.listener import Listener
from mixopt.scoring.batchnorm import Recompute, find_layers
from mixopt.scoring.cache import OutcomeCache
from mixopt.scoring.choose_batchnorm import AVERAGE, BatchNorm, choose_batchnorm
from mixopt.scoring.choose_precision import AUTO, Precision, choose_precision
from mixopt.scoring.device import limit_threads, resolve_device
from mixopt.scoring.evaluator import FP32, Evaluator, Predict
from mixopt.scoring.keys import Keys
from mixopt.scoring.ledger import Ledger
from mixopt.scoring.objective import Objective
from mixopt.scoring.own_objective import OwnEvaluator
from mixopt.scoring.scorer import Scorer
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.scoring.work import AnyEvaluator
from mixopt.spec import StudySpec
from mixopt.values.groups import make_groups
from mixopt.values.mix import Mix, constant
from mixopt.values.samples import SYNTHETIC, VALIDATION, Samples
from mixopt.weights.pool import Pool
from mixopt.weights.reading import Reader
from mixopt.weights.stack import Stack, describe, open_stack


@dataclass(frozen=True, eq=False)
class Assembly:
    """An objective and the parts a report or a saved model needs.

    Attributes:
        objective: Scores mixes of the pool.
        family: The model family.
        reader: Opens the pool's checkpoints.
        device: Where models run.
        batchnorm: How BatchNorm statistics are made.
        precision: Of the forward passes.
        stack: How the checkpoints are kept.
        shifts: How the shifted images were made, as plain JSON values; empty without ``--shifts``.
    """

    objective: Objective
    family: families.Family
    reader: Reader
    device: torch.device
    batchnorm: BatchNorm
    precision: Precision
    stack: Stack
    shifts: Mapping[str, Any]

    @property
    def resolved(self) -> dict[str, str]:
        """Options that may be left to mixopt, as it chose them: what a resumed run keeps."""
        return {"precision": self.precision.mode, "stack": self.stack.mode}


def open_objective(spec: StudySpec, listener: Listener | None = None) -> Objective:
    """Open a pool and its splits, ready to score mixes.

    On a CPU this lowers torch's number of threads for the whole process, where it is higher than the cores that the
    process may use; see `mixopt.scoring.device.limit_threads`.

    Args:
        spec: From `mixopt.load_spec`.
        listener: Told about notices and progress.

    Raises:
        MixoptError: Whatever is wrong with the checkpoints, the model or the data.
    """
    return assemble(spec, listener or Listener()).objective


def assemble(spec: StudySpec, listener: Listener) -> Assembly:
    """As `open_objective`, with the parts beside it."""
    paths, base = ingredient_files(spec)
    for notice in found_notices(spec, base):
        listener.info(notice)
    check_data(spec)
    device = resolve_device(spec.device)
    limit_threads(device)
    family, stopwatch = family_of(spec, listener), Stopwatch()
    tell_of(family, listener)
    with stopwatch("decode"):
        splits, shifts = add_steering(spec, family, open_splits(spec, family, listener), listener)
    with stopwatch("open"):
        module = family.build()
        reader, base = opening_of(family, module, spec, paths, base, listener)
        pool = open_pool_of(family, listener, paths, base, reader)
    stack = open_stack(pool, device, spec.stack)
    if text := describe(stack, spec.stack, device):
        (listener.warn if stack.place == "host" else listener.info)(text)
    engine = bare_engine(spec, family, module, pool, device, stack)
    soup = uniform_soup(pool)
    engine.builder.apply(soup)
    evaluators: dict[str, AnyEvaluator] = {**_evaluators(spec, family, splits, device, listener)}
    evaluators = with_own(spec, evaluators, engine.builder.module, device)
    validation, metric = evaluators[VALIDATION], driving_metric(spec, evaluators)

    def fused_soup() -> Predict:
        engine.builder.apply(soup)
        return engine.predict()

    with stopwatch("precision"):
        precision = _precision(spec, validation, fused_soup, family, listener)
    evaluators = {name: evaluator.at(precision.mode, spec.compile) for name, evaluator in evaluators.items()}
    if spec.compile:
        with stopwatch("compile"):
            _compile(evaluators[VALIDATION], fused_soup, listener)
    keys = Keys(pool, engine.builder.dtype, identity_of(family, device, precision.mode, stack.mode, spec.compile))
    cache = OutcomeCache(spec.cache, listener, metric.needs)
    ledger = Ledger(spec.cache, pool, keys, listener)

    tuning = tuning_samples(len(validation.split), spec.confirm)

    def scoring(recompute: Recompute | None) -> Objective:
        complete = replace(recomputing(engine, recompute), evaluators=evaluators, stopwatch=stopwatch)
        return Objective(Scorer(complete, cache, keys, ledger=ledger), metric, metric, tuning)

    layers = find_layers(pool, engine.builder.module)

    def recompute() -> Recompute:
        if isinstance(validation, OwnEvaluator):
            raise DataError(
                f"{validation.path}: BatchNorm statistics cannot be recomputed where your own function scores, as "
                "there are no samples; use --batchnorm average"
            )
        return Recompute(layers, validation, pool.saved_dtypes(engine.builder.dtype))

    batchnorm = choose_batchnorm(spec.batchnorm, len(layers), recompute, scoring, soup, listener)
    return Assembly(scoring(batchnorm.recompute), family, reader, device, batchnorm, precision, stack, shifts)


def identity_of(
    family: families.Family, device: torch.device, precision: str, stack: str, is_compiled: bool
) -> dict[str, object]:
    """What outcomes depend on beside weights and samples; part of every cache key."""
    return {
        "family": family.identity(),
        "preprocess": family.encoding.key,
        # Of mixes whose statistics are recomputed, the key says so beside this.
        "batchnorm": AVERAGE,
        "precision": precision,
        "device": device.type,
        # Outcomes from before there was a choice are of fp32.
        **({} if stack == FP32 else {"stack": stack}),
        **({"compile": True} if is_compiled else {}),
    }


def open_splits(
    spec: StudySpec, family: families.Family, listener: Listener, *, selects: bool = True
) -> dict[str, Samples]:
    """The validation split and the tests by name, the former first; see `mixopt.data.splits.open_splits`.

    Raises:
        DataError: A split cannot be used, or the validation split is also a test split.
    """
    return open_splits_of(spec, family, listener, selects=selects)


def functions_of(spec: StudySpec) -> dict[str, str]:
    """Split name to import path, of the splits that a user's own functions score."""
    return own_functions(spec)


def tuning_samples(samples: int, confirm: float) -> int:
    """How many of a validation split's samples tune, where a share of it confirms; at least one."""
    return max(1, samples - round(samples * confirm))


def uniform_soup(pool: Pool) -> Mix:
    """The uniform soup of the ingredients; of all columns, where one ingredient alone is no soup."""
    members = pool.ingredients if len(pool.ingredients) > 1 else pool.columns
    row = [(name in members) / len(members) for name in pool.columns]
    return constant(make_groups("whole", pool.sizes), pool.columns, row)


def _evaluators(
    spec: StudySpec, family: families.Family, splits: Mapping[str, Samples], device: torch.device, listener: Listener
) -> dict[str, Evaluator]:
    """An evaluator for each split; no batch spans the end of the samples that tune."""
    tuning = tuning_samples(len(splits[VALIDATION]), spec.confirm) if VALIDATION in splits else None
    cut = {VALIDATION: tuning, **({SYNTHETIC: tuning} if SYNTHETIC in spec.steering else {})}
    heard = listener.once()
    return {
        name: Evaluator(split, family.encoding, device, spec.batch_size, cut=cut.get(name), listener=heard)
        for name, split in splits.items()
    }


def _precision(
    spec: StudySpec,
    validation: AnyEvaluator,
    soup: Callable[[], Predict],
    family: families.Family,
    listener: Listener,
) -> Precision:
    """As asked for, or by measurement; fp32 where a user's own function scores, and nothing can be compared."""
    if isinstance(validation, OwnEvaluator):
        return Precision(FP32 if spec.precision == AUTO else spec.precision)
    return choose_precision(spec.precision, validation, soup, family.identity(), spec.cache, listener)


def _compile(evaluator: AnyEvaluator, soup: Callable[[], Predict], listener: Listener) -> None:
    """Run one batch, so that compiling is not part of any mix's seconds, and fails before any work where it does."""
    listener.info("compiling the forward pass (--compile)")
    started = time.perf_counter()
    # Torch holds a few models at most: those of earlier runs in this process make room.
    torch.compiler.reset()
    evaluator.run(soup(), 0, min(evaluator.batch_size, len(evaluator.split)))
    listener.info(f"compiled in {time.perf_counter() - started:.1f} s")
