"""StudySpec to Objective: the only importer of families and data sources."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch

from mixopt import families
from mixopt.data import open_split
from mixopt.errors import CheckpointError, DataError, ScoreError, SpecError, names
from mixopt.files import write_json
from mixopt.listener import Listener
from mixopt.scoring.activation_reuse import Prefix, budget_on
from mixopt.scoring.batchnorm import Recompute, find_layers
from mixopt.scoring.cache import OutcomeCache
from mixopt.scoring.evaluator import FP32, Evaluator, Predict
from mixopt.scoring.objective import Objective
from mixopt.scoring.precision import device_name, low_precisions, measure, read_measured
from mixopt.scoring.stopwatch import Stopwatch
from mixopt.spec import AUTO, POOL_FILE, StudySpec, pool_template
from mixopt.values.groups import depth_order, make_groups
from mixopt.values.mix import Mix, constant
from mixopt.values.samples import SYNTHETIC, VALIDATION, Samples
from mixopt.weights import checkpoints
from mixopt.weights.builder import FastBuilder
from mixopt.weights.pool import Pool, open_pool
from mixopt.weights.stack import BF16, Stack, open_stack

BATCHNORM = "average"
RECOMPUTE = "recompute"


@dataclass(frozen=True, eq=False)
class Assembly:
    """An objective and the parts a report or a saved model needs.

    Attributes:
        objective: Scores mixes of the pool.
        family: The model family.
        device: Where models run.
        batchnorm: How BatchNorm statistics are made, as plain JSON values: ``mode`` (``average`` or ``recompute``)
            and ``layers``, how many differ between the checkpoints. Where they are recomputed, also ``images``,
            ``batch`` and ``key``, which names what they depend on. Where both were tried, ``scores`` by mode (None
            where one cannot be had) of the ``soup``, the uniform one of these columns.
        precision: Of the forward passes, as plain JSON values: ``mode`` (``fp32``, ``bf16`` or ``fp16``), and where it
            was chosen by measurement, what was measured, see `mixopt.scoring.precision.Measured`.
        stack: How the checkpoints are kept, as plain JSON values: ``mode`` (``fp32`` or ``bf16``) and ``place``
            (``device`` or ``host``).
        shifts: How the shifted images were made, as plain JSON values; empty without ``--shifts``.
    """

    objective: Objective
    family: families.Family
    device: torch.device
    batchnorm: dict[str, Any]
    precision: dict[str, Any]
    stack: dict[str, str]
    shifts: dict[str, Any]

    @property
    def settled(self) -> dict[str, str]:
        """Options that may be left to mixopt, as it chose them: what a resumed run keeps."""
        return {"precision": self.precision["mode"], "stack": self.stack["mode"]}


def open_objective(spec: StudySpec, listener: Listener | None = None) -> Objective:
    """Open a pool and its splits, ready to score mixes.

    On a CPU this lowers torch's number of threads for the whole process, where it is higher than the cores that the
    process may use; see `limit_threads`.

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
    _needs_data(spec, [*paths.values(), *([base[1]] if base else [])])
    device = resolve_device(spec.device)
    limit_threads(device)
    family = family_of(spec)
    stopwatch = Stopwatch()
    with stopwatch("decode"):
        splits = open_splits(spec, family, listener)
        splits, shifts = _with_steering(spec, family, splits, listener)
    with stopwatch("open"):
        pool = open_pool_of(family, listener, paths, base)
        module = family.build()
    stack = _settle_stack(spec, pool, device, listener)
    builder = FastBuilder(pool, module, device, saved_dtype(spec), stack)
    fixed = frozenset(pool.fixed) | frozenset(alias for alias, name in pool.tied.items() if name in pool.fixed)

    def predict() -> Predict:
        return family.predict(module, fixed)

    evaluators = {
        name: Evaluator(split, family.encoding, device, spec.batch_size, listener=listener)
        for name, split in splits.items()
    }
    evaluators[VALIDATION].cut = steering_samples(len(splits[VALIDATION]), spec.confirm)
    if shifts:
        evaluators[SYNTHETIC].cut = evaluators[VALIDATION].cut
    # What prefix reuse goes on with is not compiled: one mix would have outcomes of two kinds.
    prefix = None if spec.compile else _prefix_of(family, builder, fixed, device)
    with stopwatch("precision"):
        precision = _settle_precision(spec, family, builder, evaluators[VALIDATION], predict, listener)
    evaluators = {name: evaluator.at(precision["mode"], spec.compile) for name, evaluator in evaluators.items()}
    if spec.compile:
        with stopwatch("compile"):
            _compile(builder, evaluators[VALIDATION], predict, listener)
    steering = evaluators[VALIDATION].cut

    def scorer(recompute: Recompute | None) -> Objective:
        cache = OutcomeCache(spec.cache, listener)
        identity = identity_of(family, device, precision["mode"], stack.mode, spec.compile)
        # Recomputed statistics depend on the whole mix: with those, no stage's outcome can be used again.
        kept = prefix if recompute is None else None
        return Objective(
            pool, builder, predict, evaluators, cache, spec.metric, identity, recompute, stopwatch, kept, steering
        )

    objective, facts = _settle_batchnorm(spec, pool, builder, evaluators[VALIDATION], scorer, listener)
    return Assembly(objective, family, device, facts, precision, {"mode": stack.mode, "place": stack.place}, shifts)


def identity_of(
    family: families.Family, device: torch.device, precision: str, stack: str, is_compiled: bool
) -> dict[str, object]:
    """What outcomes depend on beside weights and images; part of every cache key."""
    return {
        "family": family.identity(),
        "preprocess": family.encoding.key,
        # Of mixes whose statistics are recomputed, the objective's key says so beside this.
        "batchnorm": BATCHNORM,
        "precision": precision,
        "device": device.type,
        # Outcomes from before there was a choice are of fp32.
        **({} if stack == FP32 else {"stack": stack}),
        **({"compile": True} if is_compiled else {}),
    }


def ingredient_files(spec: StudySpec) -> tuple[dict[str, Path], tuple[str, Path] | None]:
    """Column name to file for the ingredients, and the base's name and file.

    Raises:
        CheckpointError: No folder, no checkpoints, or no base where one is named.
    """
    found = checkpoints.find(spec.models, spec.ingredients)
    base = None if spec.base is None else _base_file(spec)
    files = [path for path in found if base is None or path.resolve() != base.resolve()]
    if not files:
        wanted = f"matching {names(spec.ingredients)}" if spec.ingredients else f"({', '.join(checkpoints.SUFFIXES)})"
        raise CheckpointError(f"{spec.models}: no checkpoints {wanted} in this folder; correct --models")
    every = checkpoints.names_of([*files, *([base] if base else [])], spec.models)
    named = dict(zip(every, files, strict=False))
    return named, None if base is None else (every[-1], base)


def open_pool_of(
    family: families.Family | None,
    listener: Listener,
    paths: dict[str, Path],
    base: tuple[str, Path] | None,
) -> Pool:
    """Open the pool, with order and reading from names and files alone where no family is known."""
    order = depth_order if family is None else family.depth
    reader = checkpoints.read if family is None else family.read
    pool = open_pool(paths, base, order=order, reader=reader, progress=listener.progress)
    for notice in pool.notices:
        listener.info(notice)
    return pool


def family_of(spec: StudySpec) -> families.Family:
    """The family that the options describe."""
    return families.open_family(
        families.FamilyOptions(spec.family, spec.model, spec.classnames, spec.templates, spec.models)
    )


def family_of_recipe(identity: Mapping[str, Any], folder: Path) -> families.Family:
    """The family that a recipe describes; relative paths are relative to a folder.

    Raises:
        SpecError: The description is not complete.
    """
    return families.from_identity(identity, folder)


def open_splits(spec: StudySpec, family: families.Family, listener: Listener) -> dict[str, Samples]:
    """Every split by name, the selection split first.

    Raises:
        DataError: A split cannot be used, or the selection split is also a test split.
    """
    wanted: dict[str, Path] = {} if spec.data.validation is None else {VALIDATION: spec.data.validation}
    wanted |= spec.data.test
    splits = _open_each(spec, wanted, family, family.classnames, listener)
    if VALIDATION in splits:
        _check_overlap(splits, listener)
        if spec.limit is not None:
            splits[VALIDATION] = splits[VALIDATION].first(spec.limit)
    return splits


def _open_each(
    spec: StudySpec,
    wanted: Mapping[str, Path],
    family: families.Family,
    classnames: Sequence[str] | None,
    listener: Listener,
) -> dict[str, Samples]:
    """Splits by name; where nobody knows their classes, the first one's numbering holds for all."""
    splits: dict[str, Samples] = {}
    for name, path in wanted.items():
        splits[name] = open_split(
            path,
            name,
            family.encoding,
            classnames=classnames,
            cache=spec.cache,
            listener=listener,
        )
        classnames = classnames or splits[name].classes
    return splits


def _with_steering(
    spec: StudySpec, family: families.Family, splits: dict[str, Samples], listener: Listener
) -> tuple[dict[str, Samples], dict[str, Any]]:
    """The splits with those that steer a search in second place, and how the shifted images were made.

    Raises:
        DataError: A split cannot be used, or one that steers is also a test split.
    """
    paths = {name: path for name, (path, _) in spec.select.items()}
    steering = _open_each(spec, paths, family, family.classnames or splits[VALIDATION].classes, listener)
    shifts: dict[str, Any] = {}
    if SYNTHETIC in spec.weights:
        # Imports torchvision, which other runs can do without.
        from mixopt.data.shifts import facts, open_shifted

        steering[SYNTHETIC] = open_shifted(splits[VALIDATION], SYNTHETIC, spec.cache, listener.progress)
        shifts = facts()
    tests = {name: split for name, split in splits.items() if name != VALIDATION}
    for name, split in steering.items():
        if shared := split.shared_with(splits[VALIDATION]):
            listener.warn(f"{shared} {split.unit}s of split {name}, which steers, are in the selection split too")
        _refuse_overlap(tests, split, f"split {name}, which steers", listener)
    steering = {name: replace(split, steers=True) for name, split in steering.items()}
    return {VALIDATION: splits[VALIDATION], **steering, **tests}, shifts


def steering_samples(samples: int, confirm: float) -> int:
    """How many of a selection split's samples steer, where a share of it confirms; at least one."""
    return max(1, samples - round(samples * confirm))


def resolve_device(name: str) -> torch.device:
    """The torch device; ``auto`` takes a CUDA GPU where there is one.

    Raises:
        SpecError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SpecError(f"--device {name}: expected auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise SpecError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SpecError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices; use --device cpu")
    return device


def limit_threads(device: torch.device) -> None:
    """On a CPU, lower torch's threads to the cores that this process may use: its affinity and its container's quota.

    Threads beyond those wait for each other. The number is never raised, so that ``OMP_NUM_THREADS``,
    ``torch.set_num_threads`` and joblib's share of the cores per worker hold. It is one number per process, and stays.
    """
    if device.type == "cpu" and torch.get_num_threads() > joblib.cpu_count():
        torch.set_num_threads(joblib.cpu_count())


def saved_dtype(spec: StudySpec) -> torch.dtype | None:
    """The dtype that ``--dtype`` asks for; None for that of the ingredients."""
    return None if spec.dtype == "ingredients" else checkpoints.dtype_of(spec.dtype)


def _prefix_of(
    family: families.Family, builder: FastBuilder, fixed: frozenset[str], device: torch.device
) -> Prefix | None:
    """Reuse of first stages, for a model that has any; the builder then fuses stage by stage."""
    if not isinstance(family, families.Staged):
        return None
    stages, predict_stages = family.stages(builder.module), family.predict_stages
    if stages is None:
        return None
    prefix = Prefix(builder.pool, stages, lambda: predict_stages(builder.module, fixed), budget_on(device))
    builder.cuts = prefix.cuts
    return prefix


def _settle_stack(spec: StudySpec, pool: Pool, device: torch.device, listener: Listener) -> Stack:
    """Where the columns lie; said wherever that is not the pool's own float32 stack."""
    stack = open_stack(pool, device, spec.stack)
    kept = f"in {stack.mode} on the {stack.place}"
    if stack.mode == BF16:
        listener.info(f"stack: {spec.stack}, checkpoints {kept}: candidates are fused from bf16 differences")
    elif stack.place == "host":
        listener.warn(f"stack: {spec.stack}, checkpoints {kept}, streamed to {device} for every candidate")
    elif device.type != "cpu":
        listener.info(f"stack: {spec.stack}, checkpoints {kept}")
    return stack


def _settle_precision(
    spec: StudySpec,
    family: families.Family,
    builder: FastBuilder,
    evaluator: Evaluator,
    predict: Callable[[], Predict],
    listener: Listener,
) -> dict[str, Any]:
    """The precision of the forward passes, measured on the uniform soup where none is given: `Assembly.precision`."""
    if spec.precision != AUTO:
        if spec.precision != FP32:
            listener.info(f"forward passes in {spec.precision} (precision: {spec.precision})")
        return {"mode": spec.precision}
    candidates = low_precisions(evaluator.device)
    if not candidates:
        listener.info(f"precision: auto, fp32 (on this {evaluator.device.type.upper()} nothing lower is fast)")
        return {"mode": FP32}
    # Measured once for a model on a machine: another measurement might decide otherwise, and share no cached score.
    facts = [family.identity(), evaluator.batch_size, device_name(evaluator.device), torch.get_num_threads()]
    kept = (
        spec.cache
        / "precision"
        / f"{hashlib.sha256(json.dumps([*facts, torch.__version__]).encode()).hexdigest()}.json"
    )
    found = read_measured(kept)
    if found is None:
        builder.apply(_uniform(builder.pool))
        found = measure(predict(), evaluator, candidates, listener.progress)
        if found.images:
            write_json(kept, found.as_dict())
    listener.info(f"precision: auto, {found.precision}, by the uniform soup on {VALIDATION}: {found}")
    return found.as_dict()


def _compile(builder: FastBuilder, evaluator: Evaluator, predict: Callable[[], Predict], listener: Listener) -> None:
    """Run one batch, so that compiling is not part of any mix's seconds, and fails before any work where it does."""
    listener.info("compiling the forward pass (--compile)")
    started = time.perf_counter()
    # Torch holds a few models at most: those of earlier runs in this process make room.
    torch.compiler.reset()
    builder.apply(_uniform(builder.pool))
    evaluator.run(predict(), 0, min(evaluator.batch_size, len(evaluator.split)))
    listener.info(f"compiled in {time.perf_counter() - started:.1f} s")


def _settle_batchnorm(
    spec: StudySpec,
    pool: Pool,
    builder: FastBuilder,
    evaluator: Evaluator,
    scorer: Callable[[Recompute | None], Objective],
    listener: Listener,
) -> tuple[Objective, dict[str, Any]]:
    """The objective with averaged or recomputed BatchNorm statistics, and what `Assembly.batchnorm` says of it."""
    layers = find_layers(pool, builder.module)
    average = scorer(None)
    facts: dict[str, Any] = {"mode": BATCHNORM, "layers": len(layers)}
    if not layers:
        if spec.batchnorm == RECOMPUTE:
            listener.warn(
                "--batchnorm recompute: the checkpoints differ in no BatchNorm statistics; nothing is recomputed"
            )
        return average, facts
    told = f"BatchNorm statistics of {len(layers)} layers"
    averaged = f"{told} are averaged with the weights (batchnorm: average)"
    if spec.batchnorm == BATCHNORM:
        listener.info(averaged)
        return average, facts
    try:
        recompute = Recompute(layers, evaluator, pool.saved_dtypes(builder.dtype))
    except DataError as error:
        if spec.batchnorm == RECOMPUTE:
            raise
        listener.warn(f"batchnorm: auto, but {error}")
        listener.info(averaged)
        return average, facts
    recomputing = scorer(recompute)
    if spec.batchnorm == "auto":
        soup = _uniform(pool)
        facts |= {"soup": list(soup.support()), "scores": _scores(average, recomputing, soup, listener)}
        of_average, of_recompute = facts["scores"].values()
        found = [
            f"{mode} {'not finite' if value is None else f'{value:.4f}'}" for mode, value in facts["scores"].items()
        ]
        listener.info(f"batchnorm: auto, by {spec.metric} of the uniform soup on {VALIDATION}: {', '.join(found)}")
        if of_recompute is None or (of_average is not None and not average.metric.better(of_recompute, of_average)):
            listener.info(averaged)
            return average, facts
    listener.info(
        f"{told} are recomputed for every mix of several checkpoints, from {recompute.images:,} images of "
        f"{VALIDATION}, without their labels (batchnorm: recompute)",
    )
    facts |= {"mode": RECOMPUTE, "images": recompute.images, "batch": recompute.batch, "key": recompute.key}
    return recomputing, facts


def _uniform(pool: Pool) -> Mix:
    """The uniform soup of the ingredients; of all columns, where one ingredient alone is no soup."""
    members = pool.ingredients if len(pool.ingredients) > 1 else pool.columns
    row = [(name in members) / len(members) for name in pool.columns]
    return constant(make_groups("whole", pool.sizes), pool.columns, row)


def _scores(average: Objective, recomputing: Objective, soup: Mix, listener: Listener) -> dict[str, float | None]:
    """The soup's score with averaged and with recomputed statistics; None where one cannot be had, with a warning."""
    found: dict[str, float | None] = {}
    total = 2 * average.samples
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        listener.progress("comparing BatchNorm statistics", done, total)

    for mode, objective in ((BATCHNORM, average), (RECOMPUTE, recomputing)):
        try:
            found[mode] = objective.counting(on_batch=on_batch).score(soup).value
        except (ScoreError, SpecError) as error:
            listener.warn(f"batchnorm: auto, the uniform soup with {mode}: {error}")
            found[mode] = None
    return found


def _base_file(spec: StudySpec) -> Path:
    # A base on the command line may be given from here, or by its name in the pool.
    given = spec.base or Path()
    for path in (given, spec.models / given):
        if path.is_file():
            return path
    raise CheckpointError(f"--base {given}: no such file, neither here nor in {spec.models}")


def _needs_data(spec: StudySpec, files: list[Path]) -> None:
    if spec.data.validation is not None:
        return
    template = pool_template(spec.models, [path.name for path in files])
    pool_file = spec.models / POOL_FILE
    what = "Complete it after this one" if pool_file.is_file() else f"Write this to {pool_file}, filled in"
    none = f"{pool_file} does not name one" if pool_file.is_file() else f"there is no {pool_file} to name one"
    raise SpecError(f"--data: no selection split is given, and {none}. {what}:\n\n{template}\n")


def _check_overlap(splits: dict[str, Samples], listener: Listener) -> None:
    validation = splits[VALIDATION]
    if validation.labels.min() == validation.labels.max():
        listener.warn(f"{validation.source}: all {len(validation)} samples have one label")
    tests = {name: split for name, split in splits.items() if name != VALIDATION}
    _refuse_overlap(tests, validation, "selection split", listener)


def _refuse_overlap(tests: Mapping[str, Samples], choosing: Samples, called: str, listener: Listener) -> None:
    for name, split in tests.items():
        shared = split.shared_with(choosing)
        if shared == len(split):
            raise DataError(
                f"{split.source} (test split {name}): all its {split.unit}s are in the {called} {choosing.source}; "
                "what selects cannot also test: give another --test or --data"
            )
        if shared:
            listener.warn(f"{shared} {split.unit}s of test split {name} are in the {called} too")
