"""Every option of a run, once: its type, its default, its help, and the commands that have it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from mixopt.errors import SpecError
from mixopt.spec import checks
from mixopt.spec.checks import AUTO
from mixopt.spec.option import (
    CHOICE,
    DATA,
    EVERY,
    ONLY_COMPARE,
    ONLY_SEARCH,
    RUN,
    RUNS,
    SCORING,
    SEARCH,
    Option,
)
from mixopt.spec.pool_options import PoolFields, Positive
from mixopt.values.metrics import METRICS


class Fields(PoolFields):
    """The fields of `mixopt.StudySpec`. What one is stands beside it, and nowhere else; None: the run chooses."""

    # The choice
    metric: Annotated[
        str,
        Option(
            f"What every choice is made by: {', '.join(METRICS)} (or top and another number); with your own objective, "
            "the name of its number.",
            CHOICE,
            SCORING,
            common=True,
        ),
    ] = "accuracy"
    methods: Annotated[
        tuple[str, ...],
        BeforeValidator(checks.rows_of),
        Option(
            "Rows of the table, each method or method:variant (repeatable, or with commas).",
            CHOICE,
            ONLY_COMPARE,
            common=True,
            metavar="ROW,...",
            default="all",
        ),
    ] = ()
    from_: Annotated[
        tuple[str, ...],
        BeforeValidator(checks.rows_of),
        Option(
            "Rows or checkpoints whose mixes take the place of the ingredients: soups of soups (repeatable, or with "
            "commas).",
            CHOICE,
            RUNS,
            metavar="ROW,...",
        ),
    ] = Field(default=(), alias="from")
    greedy_rule: Annotated[
        Literal["at-least", "strict"],
        Option("at-least (the paper's >=) or strict (the authors' code's >).", CHOICE, RUNS),
    ] = "at-least"
    batchnorm: Annotated[
        Literal["average", "recompute", "auto"],
        Option(
            "BatchNorm statistics of a mix: average (of the checkpoints'), recompute (from selection images), or auto "
            "(the better of the two on the uniform soup).",
            CHOICE,
            RUNS,
        ),
    ] = "auto"
    confirm: Annotated[
        float,
        Field(ge=0, lt=1),
        Option(
            "The share of the validation split, the last of its fixed order, that steers no baseline, and judges a "
            "start learned by gradient; samplers but surface are not steered by it, and it decides last. 0 steers by "
            "all.",
            CHOICE,
            RUNS,
        ),
    ] = 0.2
    refit: Annotated[
        Literal["on", "off"],
        Option("on learns a learned start again from all samples, after the last choice; or off.", CHOICE, ONLY_SEARCH),
    ] = "on"
    robust: Annotated[
        Literal["on", "off"],
        Option(
            "on ends with a step for shifted samples, towards the middle of the pool, where one costs nothing that "
            "held-out samples can tell and pays on the selection images under synthetic shifts, or by --unlabelled; or "
            "off. Not where other splits steer.",
            CHOICE,
            ONLY_SEARCH,
        ),
    ] = "on"
    unlabelled: Annotated[
        Path | None,
        Option(
            "Samples of the kind that the model will meet, without labels: what the last step for shifts is judged by "
            "(--robust), in place of synthetic shifts.",
            CHOICE,
            ONLY_SEARCH,
            metavar="PATH",
        ),
    ] = None
    # The search
    trials: Annotated[
        Positive, Option("Complete trials in all, the start included.", SEARCH, ("search", "demo"), common=True)
    ] = 200
    preset: Annotated[
        Literal["fast", "default", "thorough"],
        Option("fast (30 trials), default, or thorough (1,000); other options win over it.", SEARCH, ONLY_SEARCH),
    ] = "default"
    sampler: Annotated[
        str,
        Option(
            "surface (a response surface of logits), cmaes, tpe, gp, random, package.module:Class, nsgaii (with "
            "--pareto alone), or auto: surface, but cmaes with --refine or an objective of your own, and nsgaii with "
            "--pareto.",
            SEARCH,
            ONLY_SEARCH,
        ),
    ] = AUTO
    evidence: Annotated[
        Literal["run", "cache"],
        Option(
            "What --sampler surface learns from beside the trials: run (what the baselines scored), or cache (every "
            "mix of these checkpoints ever scored on these samples; kept in the study when it begins).",
            SEARCH,
            ONLY_SEARCH,
        ),
    ] = "run"
    population: Annotated[
        Annotated[int, Field(ge=2, le=100_000)] | None,
        Option("Trials asked at a time; the sampler's own.", SEARCH, ONLY_SEARCH),
    ] = None
    pareto: Annotated[
        bool,
        Field(validate_default=True),
        Option(
            "The sampler is told the signal on each split that steers, not their weighted mean, and looks for the "
            "front; the best of the front by the weighted mean go to the last choice.",
            DATA,
            ONLY_SEARCH,
        ),
    ] = False
    groups: Annotated[
        str | None,
        BeforeValidator(checks.scheme_of),
        Option(
            "whole, block, tensor, a number of depth segments, or a .toml of regular expressions; chosen to keep the "
            "dimensions few.",
            SEARCH,
            ("search", "inspect"),
            otherwise={"inspect": "Layer groups to show, as for search. (default: block)"},
        ),
    ] = None
    space: Annotated[
        Literal["auto", "simplex", "affine", "shared", "depth", "residual"],
        Option(
            "residual (from the start towards the other baselines), simplex, affine, shared, depth, or auto: residual, "
            "but with --groups, --ingredients or --from simplex (affine, if the start has negative entries).",
            SEARCH,
            ONLY_SEARCH,
        ),
    ] = "auto"
    refine: Annotated[
        Positive | None,
        Option(
            "The last half of the trials moves the rows of the so many layer groups that matter most, around the best "
            "trial so far.",
            SEARCH,
            ONLY_SEARCH,
            metavar="N",
        ),
    ] = None
    race: Annotated[
        Literal["on", "off"],
        Option("on gives up trials that will not reach the best so far; or off.", SEARCH, ONLY_SEARCH),
    ] = "on"
    signal: Annotated[
        Literal["metric", "smooth"],
        Option("What the sampler is told: metric, or smooth (less the loss).", SEARCH, ONLY_SEARCH),
    ] = "smooth"
    stop: Annotated[
        bool,
        Option(
            "Stop where --sampler surface promises no more than the samples can tell; --no-stop runs all trials, and "
            "goes on with a search that stopped.",
            SEARCH,
            ONLY_SEARCH,
        ),
    ] = True
    radius: Annotated[
        Annotated[float, Field(gt=0, le=1)] | None,
        Option(
            "How far a coefficient is pushed at the edge of the box (residual: the part of the way to the other mix); "
            "by space, 0.5, or in affine, shared and depth 0.1.",
            SEARCH,
            ONLY_SEARCH,
        ),
    ] = None
    start: Annotated[
        str,
        Option(
            "best (baseline), individual, uniform, greedy, learned (by gradient), or a recipe.json.",
            SEARCH,
            ONLY_SEARCH,
        ),
    ] = "best"
    timeout: Annotated[
        Annotated[float, Field(gt=0)] | None, Option("Start no trial after so many seconds.", SEARCH, ONLY_SEARCH)
    ] = None
    # The run
    seed: Annotated[int, Field(ge=0, lt=2**32), Option("Of everything random.", RUN, (*RUNS, "demo"), common=True)] = 0
    device: Annotated[str, Option("auto, cpu, cuda, cuda:1.", RUN, SCORING, common=True)] = "auto"
    batch_size: Annotated[Positive | None, Option("Images per forward pass; chosen by device.", RUN, SCORING)] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"],
        Option(
            "Of forward passes: fp32, bf16, fp16, or auto (the fastest that was measured to agree with fp32).",
            RUN,
            SCORING,
            otherwise={"evaluate": "Of forward passes: fp32, bf16 or fp16. (default: fp32)"},
        ),
    ] = "auto"
    compile: Annotated[bool, Option("Run forward passes through torch.compile; for long runs.", RUN, SCORING)] = False
    stack: Annotated[
        Literal["auto", "fp32", "bf16"],
        Option(
            "How checkpoints are kept while mixes are scored: fp32, bf16 (differences from a centre: half the memory), "
            "or auto (fp32, unless bf16 alone fits).",
            RUN,
            RUNS,
        ),
    ] = "auto"
    dtype: Annotated[str, Option("Of the saved model: ingredients (as theirs), fp32, fp16 or bf16.", RUN, RUNS)] = (
        "ingredients"
    )
    shard_size: Annotated[
        Annotated[float, Field(gt=0)],
        Option(
            "Gigabytes beyond which the saved model is written in several files, with an index beside them.", RUN, RUNS
        ),
    ] = 50.0
    cache: Annotated[
        Path, Option("Decoded splits and outcomes.", RUN, (*EVERY, "demo"), default="$XDG_CACHE_HOME/mixopt")
    ] = Field(default_factory=lambda: default_cache())
    out: Annotated[
        Path | None,
        Option(
            "The run folder.",
            RUN,
            (*RUNS, "demo"),
            common=True,
            default="runs/<pool folder name>",
            otherwise={"demo": "Folder for the pool and the run. (default: runs/demo)"},
        ),
    ] = None
    force: Annotated[
        bool, Option("Replace files in the run folder that mixopt did not write, or that the run reads.", RUN, RUNS)
    ] = False
    page: Annotated[
        Literal["on", "full", "off"],
        Option(
            "on ends with report.html, and for it scores checkpoints on test splits and half-way mixes, with at most a "
            "quarter of the run's images; full without that limit; or off.",
            RUN,
            RUNS,
        ),
    ] = "on"
    storage: Annotated[
        str | None, Option("Optuna storage URL in place of the run folder's journal.", RUN, ONLY_SEARCH)
    ] = None


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/mixopt``, or ``~/.cache/mixopt``.

    Raises:
        SpecError: There is no home folder.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    if home:
        return Path(home) / "mixopt"
    try:
        return Path.home() / ".cache" / "mixopt"
    except RuntimeError as error:  # a user whom the system does not know, without HOME: usual in containers
        raise SpecError("--cache: there is no home folder to keep it in; name a folder: --cache DIR") from error
