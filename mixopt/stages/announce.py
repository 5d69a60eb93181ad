"""What a run says before its work: what was found, and how long it may take."""

from __future__ import annotations

from contextlib import suppress

from mixopt.assemble import Assembly
from mixopt.comparison.running import ingredient_mixes
from mixopt.errors import ScoreError, names
from mixopt.listener import Listener
from mixopt.scoring.objective import Objective
from mixopt.scoring.score import Score
from mixopt.spec import StudySpec
from mixopt.stages.plan import SearchPlan
from mixopt.values.samples import VALIDATION

# What samples that are held back do not do, and do.
HELD = "steer nothing and decide last"
HELD_OF_SURFACE = "steer no baseline"


def announce(spec: StudySpec, assembly: Assembly, listener: Listener, held: str = HELD) -> float:
    """Say what was found, and time one evaluation: its seconds are returned.

    Args:
        spec: The options.
        assembly: What they were made into.
        listener: Told.
        held: What samples that are held back do.
    """
    objective = assembly.objective
    pool = objective.pool
    base = f"base {pool.base}" if pool.base else "no base"
    listener.info(
        f"{len(pool.ingredients)} ingredients ({names(pool.ingredients, 3)}), {base}; family {spec.family}, "
        f"on {assembly.device}"
    )
    listener.info(
        f"{len(pool.mixed)} tensors with {pool.stack.shape[1]:,} parameters are mixed; {len(pool.fixed)} are the "
        "same in all, or not floating-point, and kept as they are"
    )
    sizes = ", ".join(f"{name} {len(evaluator.split):,}" for name, evaluator in objective.evaluators.items())
    confirmed = f", the last {objective.held_out:,} of which {held}" if objective.held_out else ""
    others = ", ".join(f"{name} ({weight:g})" for name, weight in spec.steering.items())
    choice = f"every choice but that between trials, in which {others} weighs too, is" if others else "every choice is"
    listener.info(f"samples: {sizes}; {choice} made on {VALIDATION} alone{confirmed}, by {spec.metric}")
    images = objective.samples
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done += count
        listener.progress("timing one evaluation", done, images)

    first = _first_score(objective.counting(on_batch=on_batch))
    listener.info(
        f"one evaluation: {images:,} images in {first.seconds:.2f} s ({images / first.seconds:,.0f} images/s)"
    )
    return first.seconds


def announce_search(plan: SearchPlan, objective: Objective, seconds: float, listener: Listener) -> None:
    """Say over what a search will run, and how long at most, given the seconds of one evaluation."""
    if plan.space.kind != "residual":
        groups, what = plan.space.groups, "mixes" if plan.sources else "ingredients"
        listener.info(
            f"search over {len(groups)} layer groups ({names(groups.names, 3)}) and {plan.space.count} {what}"
        )
    first, trials = 2 * len(objective.pool.ingredients), plan.trials.trials
    # A trial is scored on every split that steers; on a surface all of their samples do.
    steering = objective.whole() if plan.surface else objective
    took = seconds * (first + trials * steering.weighing(plan.weights).samples / objective.samples)
    most = "at most" if plan.surface and plan.trials.stop else "about"
    listener.info(f"{most} {first + trials} evaluations are planned, {_duration(took)} without the cache")
    if plan.trials.race and not plan.races:
        listener.info("race: off, because several splits steer (--select, --shifts)")


def _first_score(objective: Objective) -> Score:
    """The score of the first ingredient that has a finite one."""
    *others, last = ingredient_mixes(objective).values()
    for mix in others:
        with suppress(ScoreError):
            return objective.score(mix)
    return objective.score(last)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
