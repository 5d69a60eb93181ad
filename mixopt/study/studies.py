"""A run's study: what it must keep to, its space, and what its trials say."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.samplers import RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from mixopt.errors import RunError, listing, names
from mixopt.scoring.objective import Objective
from mixopt.spaces import Space
from mixopt.study.boundary import RESTORE, name_of
from mixopt.study.fronts import on_front
from mixopt.study.records import ATTRIBUTE, SECOND, check_study
from mixopt.values.metrics import Direction
from mixopt.values.mix import Mix

# The key of an identity under which a study in a database has the one run folder that it belongs to.
FOLDER = "run folder"


def open_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    direction: Direction,
    objectives: int = 1,
    *,
    metric: str | None = None,
) -> optuna.Study:
    """The run's study, new or as it was left; one that never began takes the direction and objectives of today.

    Args:
        storage: From `open_storage`.
        name: The study's.
        direction: Which way is better.
        objectives: How many values a trial has.
        metric: What its trials must have been measured by.

    Raises:
        RunError: What it or one of its trials says is damaged.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # Looked up before it is made: a journal would keep the trace of an attempt to make it a second time.
    summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
    known = {summary.study_name: summary for summary in summaries}.get(name)
    directions = [direction] * objectives
    if (
        known is not None
        and not (known.n_trials or known.user_attrs)
        and [each.name.lower() for each in known.directions] != directions
    ):
        optuna.delete_study(study_name=name, storage=storage)
        known = None
    if known is None:
        study = optuna.create_study(study_name=name, storage=storage, directions=directions)
    else:
        study = optuna.load_study(study_name=name, storage=storage)
        check_study(study, metric)
    study.sampler = RandomSampler(seed=0)  # replaced before every ask
    study.pruner = optuna.pruners.NopPruner()
    return study


def open_second(study: optuna.Study, *, metric: str | None = None) -> optuna.Study:
    """The study of a search's second round, beside the first one in its storage; raises as `open_study`."""
    direction: Direction = "minimize" if _sign(study) == 1 else "maximize"
    return open_study(study._storage, f"{study.study_name}{SECOND}", direction, metric=metric)


def has_begun(study: optuna.Study) -> bool:
    """Whether the study has a space, and so belongs to a run."""
    return ATTRIBUTE in study.user_attrs


def check_identity(
    study: optuna.Study, identity: Mapping[str, Any], out: Path, directions: Sequence[Direction]
) -> None:
    """Refuse a study that was made with other options or files, before any work.

    Args:
        study: The run's study.
        identity: What must not change between sessions, as JSON values.
        out: The run folder, for messages.
        directions: What the identity makes of the study's values.

    Raises:
        RunError: Something differs; names it and how to start anew.
    """
    stored = study.user_attrs.get(ATTRIBUTE)
    if stored is None:
        if study.get_trials(deepcopy=False):
            raise RunError(f"{out}: the study {study.study_name!r} holds trials that are not mixopt's; choose --out")
        return
    if "identity" not in stored:
        raise RunError(f"{out}: holds a study of another version of mixopt; choose another folder with --out")
    before, now = stored["identity"], json.loads(json.dumps(dict(identity)))
    check_owner(study, now)
    differences = [
        f"{key} was {_short(before.get(key))}, now {_short(now.get(key))}"
        for key in [*before, *(key for key in now if key not in before)]
        if before.get(key) != now.get(key)
    ]
    if differences:
        raise RunError(
            listing(f"{out} holds another study", differences)
            + "\nTo go on with that study, use its options and files. To start anew from what it found: "
            + f"--out NEW_FOLDER --start {out / 'recipe.json'}"
        )
    if (found := [each.name.lower() for each in study.directions]) != list(directions):
        raise RunError(
            f"{name_of(study._storage)}: study {study.study_name!r}: expected the directions {names(directions)}, "
            f"found {names(found)}; {RESTORE}"
        )


def check_owner(study: optuna.Study, identity: Mapping[str, Any]) -> None:
    """Refuse a database's study of another run folder: one parent asks and tells.

    Args:
        study: A study that has begun.
        identity: As for `check_identity`.

    Raises:
        RunError: It is another folder's; names both.
    """
    before, now = study.user_attrs[ATTRIBUTE]["identity"].get(FOLDER), identity.get(FOLDER)
    if before and now and before != now:
        raise RunError(
            f"{name_of(study._storage)}: its study {study.study_name!r} belongs to the run folder {before}, this is "
            f"{now}; a study is named by the last part of --out: choose another one, or go on in {before}"
        )


def best_mixes(study: optuna.Study, space: Space, count: int) -> dict[int, Mix]:
    """Number to mix of the trials with the best values, best first; of equals, the earliest. Estimates do not count.

    Of several objectives, those on the front, by their weighted mean: the best of all trials by that is among them.
    """
    return best_of_rounds([(study, space)], count)


def best_of_rounds(rounds: Sequence[tuple[optuna.Study, Space]], count: int) -> dict[int, Mix]:
    """As `best_mixes`, of studies one after the other, whose numbers go on counting and whose first trials are known.

    Args:
        rounds: Studies and their spaces.
        count: How many at most.
    """
    every: list[tuple[float, int, FrozenTrial, Space]] = []
    first = 0
    for study, space in rounds:
        trials = study.get_trials(deepcopy=False)
        kept = _front_of(study, trials) if len(study.directions) > 1 else trials
        every += [
            (_cost(study, each), first + each.number, each, space)
            for each in _fully_scored(kept)
            if each.number or not first
        ]
        first += len(trials)
    found: dict[int, Mix] = {}
    for _, number, trial, space in sorted(every, key=lambda each: each[:2]):
        mix = mix_of(trial, space)
        if mix not in found.values():
            found[number] = mix
        if len(found) == count:
            break
    return found


def trial_mixes(rounds: Sequence[tuple[optuna.Study, Space]], metric: str) -> dict[int, tuple[Mix, float]]:
    """Number to mix and measured metric of every trial that was scored whole, of rounds as for `best_of_rounds`."""
    found: dict[int, tuple[Mix, float]] = {}
    first = 0
    for study, space in rounds:
        trials = study.get_trials(deepcopy=False)
        found |= {
            first + each.number: (mix_of(each, space), each.user_attrs["metrics"][metric])
            for each in _fully_scored(trials)
            if (each.number or not first) and metric in each.user_attrs.get("metrics", {})
        }
        first += len(trials)
    return found


def numbered(studies: Sequence[optuna.Study]) -> dict[int, FrozenTrial]:
    """The trials of studies one after the other, by numbers that go on counting."""
    return dict(enumerate(trial for study in studies for trial in study.get_trials(deepcopy=False)))


def race_counts(study: optuna.Study, whole: int) -> dict[str, int]:
    """How many trials were given up, and the images that were seen in place of ``whole`` for each trial."""
    images = [trial.user_attrs["images"] for trial in study.get_trials(deepcopy=False) if "images" in trial.user_attrs]
    given_up = sum(bool(trial.user_attrs.get("estimated")) for trial in study.get_trials(deepcopy=False))
    return {"given_up": given_up, "images": sum(images), "unraced_images": len(images) * whole}


def recall_trials(study: optuna.Study, objective: Objective, space: Space) -> None:
    """Count every finished trial in the objective's tally, also those of earlier sessions."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        if "images" not in trial.user_attrs:
            continue  # told FAIL by somebody else
        objective.recall(mix_of(trial, space), trial.user_attrs["images"], trial.user_attrs["seconds"])


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that were told a value, in number order."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def count_states(study: optuna.Study) -> dict[str, int]:
    """How many trials are in each state, by Optuna's name for it."""
    counted = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    return dict(sorted(counted.items()))


def best_trial(study: optuna.Study, among: Sequence[FrozenTrial]) -> FrozenTrial:
    """The best of some of a study's trials."""
    return min(_fully_scored(among), key=lambda trial: (_cost(study, trial), trial.number))


def signal_of(study: optuna.Study, trial: FrozenTrial) -> float:
    """What a complete trial was told, or of several values the weighted mean; higher is better."""
    return -_cost(study, trial)


def mix_of(trial: FrozenTrial, space: Space) -> Mix:
    """The mix that a trial applied, from the rows it recorded; of somebody's own, from its parameters."""
    if "coefficients" not in trial.user_attrs:
        return space.to_mix(np.array([trial.params[label] for label in space.labels]))
    start = space.to_mix(np.zeros(space.dims))
    return Mix(start.groups, start.columns, np.array(trial.user_attrs["coefficients"], dtype=np.float64))


def seen_of(trial: FrozenTrial) -> int:
    """On how many of the first samples of the validation split a trial was scored; 0 where it was not."""
    return int(trial.user_attrs.get("seen", 0)) if trial.state == TrialState.COMPLETE else 0


def _fully_scored(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials that were scored on all samples."""
    return [each for each in trials if each.state == TrialState.COMPLETE and not each.user_attrs.get("estimated")]


def _front_of(study: optuna.Study, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    front = on_front(dict(enumerate(trials)), -_sign(study))
    return [trials[number] for number, is_on in front.items() if is_on]


def _cost(study: optuna.Study, trial: FrozenTrial) -> float:
    """A trial's value, or of several the weighted mean; the best have the lowest."""
    # Studies of somebody's own keep no weighted mean.
    value = trial.values[0] if len(trial.values) == 1 else trial.user_attrs.get("weighted", np.mean(trial.values))
    return _sign(study) * float(value)


def _sign(study: optuna.Study) -> int:
    return -1 if study.directions[0] == StudyDirection.MAXIMIZE else 1


def _short(value: Any, width: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= width else f"{text[:width]}..."
