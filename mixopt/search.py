"""The search: Optuna's samplers propose points of a space, whole generations at a time, resumable at any point.

The only module that knows Optuna. Its trials, studies and samplers are Optuna's own objects: a run's storage opens
with plain ``optuna.load_study``, and `optuna_objective` is an ordinary Optuna objective.
"""

from __future__ import annotations

import importlib
import inspect
import json
import math
import signal
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from mixopt.errors import RunError, ScoreError, SpecError, listing
from mixopt.listener import Listener, TrialEvent
from mixopt.metrics import Direction
from mixopt.mix import Mix
from mixopt.objective import SEARCH, Objective, Score
from mixopt.spaces import Space, from_description
from mixopt.stopwatch import Stopwatch

ATTRIBUTE = "mixopt"
FAILURES_ALLOWED = 2
BOX = FloatDistribution(-1.0, 1.0)


class _WholeWrites(JournalFileBackend):
    """A journal whose writes are timed, and not disturbed by Ctrl-C or SIGTERM.

    Optuna's lock, interrupted while it is taken or released, fails with an error of its own instead.
    """

    def __init__(self, path: str, stopwatch: Stopwatch) -> None:
        super().__init__(path)
        self._stopwatch = stopwatch

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        with self._stopwatch("storage"), _signals_wait():
            super().append_logs(logs)


def optuna_objective(objective: Objective, space: Space) -> Callable[[Trial], float]:
    """An ordinary Optuna objective, for people's own studies and samplers.

    It suggests one float in [-1, 1] per dimension of the space, scores the mix, records the rows as applied in the
    trial's user attribute ``coefficients``, and returns the driving metric. Create the study with
    ``direction=objective.metric.direction``. A mix whose loss is not finite raises `ScoreError`; pass
    ``catch=(ScoreError,)`` to ``study.optimize`` to go on after one.

    Args:
        objective: From `mixopt.open_objective`.
        space: From `mixopt.spaces`.
    """

    def call(trial: Trial) -> float:
        mix = _suggest(trial, space)
        trial.set_user_attr("coefficients", mix.coefficients.tolist())
        score = objective.score(mix)
        for key, value in _facts_of(score).items():
            trial.set_user_attr(key, value)
        return score.value

    return call


def make_sampler(name: str, seed: int, population: int | None) -> BaseSampler:
    """A fresh sampler of Optuna.

    Args:
        name: ``cmaes``, ``tpe``, ``gp``, ``random``, or ``package.module:Class``.
        seed: Of its random state.
        population: Of CMA-ES; its own default without.

    Raises:
        SpecError: A class that cannot be imported or is not a sampler.
    """
    if name == "cmaes":
        # The box is centred on the start, so CMA-ES begins there, with a sixth of the range as its step.
        return CmaEsSampler(seed=seed, popsize=population, warn_independent_sampling=False)
    if name == "tpe":
        return TPESampler(seed=seed)
    if name == "gp":
        return GPSampler(seed=seed)
    if name == "random":
        return RandomSampler(seed=seed)
    return _foreign_sampler(name, seed)


def population_of(name: str, dims: int, population: int | None) -> int:
    """Trials asked at a time: CMA-ES's own population, 1 for samplers that learn from every trial."""
    if population is not None:
        return population
    return 4 + math.floor(3 * math.log(dims)) if name == "cmaes" else 1


def open_storage(journal: Path, url: str | None, stopwatch: Stopwatch | None = None) -> optuna.storages.BaseStorage:
    """The run's storage; the caller holds the run folder's lock.

    A process killed while writing leaves a torn last line, which would make every later read fail, and a lock
    file that others would wait for; both are removed here.

    Args:
        journal: The journal file, used where no URL is given.
        url: An Optuna storage URL.
        stopwatch: Told the time that writing the journal takes.

    Raises:
        RunError: The storage cannot be opened.
    """
    try:
        if url is not None:
            return optuna.storages.get_storage(url)
        _mend(journal)
        return JournalStorage(_WholeWrites(str(journal), stopwatch or Stopwatch()))
    except (OSError, ValueError, ImportError, KeyError, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        where = f"--storage {url}" if url else str(journal)
        raise RunError(f"{where}: the study's storage cannot be opened ({error})") from error


def open_study(storage: optuna.storages.BaseStorage, name: str, direction: Direction) -> optuna.Study:
    """The run's study, new or as it was left; one that never began takes the direction of today."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Looked up before it is made: a journal would keep the trace of an attempt to make it a second time.
    known = {summary.study_name: summary for summary in optuna.get_all_study_summaries(storage)}.get(name)
    if known is not None and not known.n_trials and not known.user_attrs and known.direction.name.lower() != direction:
        optuna.delete_study(study_name=name, storage=storage)
        known = None
    if known is None:
        study = optuna.create_study(study_name=name, storage=storage, direction=direction)
    else:
        study = optuna.load_study(study_name=name, storage=storage)
    study.sampler = RandomSampler(seed=0)  # replaced before every ask
    study.pruner = optuna.pruners.NopPruner()
    return study


def has_begun(study: optuna.Study) -> bool:
    """Whether the study has a space, and so belongs to a run."""
    return ATTRIBUTE in study.user_attrs


def check_facts(study: optuna.Study, facts: Mapping[str, Any], out: Path) -> None:
    """Refuse a study that was made with other facts, before any work.

    Args:
        study: The run's study.
        facts: What must not change between sessions, as JSON values.
        out: The run folder, for messages.

    Raises:
        RunError: Some facts differ; names them and how to start anew.
    """
    stored = study.user_attrs.get(ATTRIBUTE)
    if stored is None:
        if study.get_trials(deepcopy=False):
            raise RunError(f"{out}: the study {study.study_name!r} holds trials that are not mixopt's; choose --out")
        return
    before, now = stored["facts"], json.loads(json.dumps(dict(facts)))
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


def settle_space(study: optuna.Study, facts: Mapping[str, Any], make_space: Callable[[], Space]) -> Space:
    """The space of a study: read back, or made and stored with the facts where the study is new."""
    stored = study.user_attrs.get(ATTRIBUTE)
    if stored is not None:
        return from_description(stored["space"])
    space = make_space()
    study.set_user_attr(ATTRIBUTE, {"facts": dict(facts), "space": space.describe()})
    return space


def run_trials(
    study: optuna.Study,
    objective: Objective,
    space: Space,
    *,
    sampler: str,
    trials: int,
    seed: int,
    population: int | None = None,
    deadline: float | None = None,
    listener: Listener | None = None,
) -> bool:
    """Bring a study to so many complete trials, the start included.

    Trial 0 is the start. After it, whole generations are asked, scored, and told in number order. Before every ask
    the sampler is fresh and seeded from (seed, trial number), and a batch's extent follows from the trials before
    it and the number wanted; so the same call, killed at any point, goes on exactly as if it had not been. Running
    trials that a killed process left are finished under their own numbers.

    Args:
        study: New or partly run.
        objective: Scores the mixes.
        space: The study's space.
        sampler: See `make_sampler`.
        trials: Complete trials wanted.
        seed: Of the whole run.
        population: Trials per generation; see `population_of`.
        deadline: `time.monotonic` time after which no trial is started.
        listener: Told every finished trial, and warned of failed ones.

    Returns:
        Whether all trials were completed (False: the deadline passed).

    Raises:
        ScoreError: Three trials in a row were not finite.
    """
    size = population_of(sampler, space.dims, population)
    heard = listener or Listener()

    def announce(number: int, score: Score | None) -> None:
        _announce(study, heard, number, trials, score)

    if not study.get_trials(deepcopy=False):
        _add_start(study, objective, space, announce)
    first = 1
    while True:
        known = study.get_trials(deepcopy=False)
        complete = sum(trial.state == TrialState.COMPLETE for trial in known[:first])
        if complete >= trials:
            return True
        batch = range(first, first + min(size - (complete - 1) % size, trials - complete))
        first = batch.stop
        if len(known) >= batch.stop and all(known[number].state.is_finished() for number in batch):
            continue
        if _late(deadline):
            return False
        for number in batch:
            with objective.stopwatch("optimizer"):
                _ask(study, space, number, make_sampler(sampler, _seed_for(seed, number), population))
        if not _tell_batch(study, objective, space, batch, deadline, announce):
            return False


def best_mix(study: optuna.Study, space: Space) -> tuple[int, Mix]:
    """Number and mix of the complete trial with the best value; of equals, the earliest."""
    best = _best(study)
    return best.number, _mix_of(best, space)


def recall_trials(study: optuna.Study, objective: Objective, space: Space) -> None:
    """Count every finished trial in the objective's tally, also those of earlier sessions."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL)):
        if "images" not in trial.user_attrs:
            continue  # told FAIL by somebody else
        objective.recall(_mix_of(trial, space), trial.user_attrs["images"], trial.user_attrs["seconds"])


def count_states(study: optuna.Study) -> dict[str, int]:
    """How many trials are in each state, by Optuna's name for it."""
    counted = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    return dict(sorted(counted.items()))


def _best(study: optuna.Study) -> FrozenTrial:
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return min(complete, key=lambda trial: (sign * float(trial.value or 0.0), trial.number))


def _mix_of(trial: FrozenTrial, space: Space) -> Mix:
    """The mix that a trial applied, from the rows it recorded."""
    start = space.to_mix(np.zeros(space.dims))
    return Mix(start.groups, start.columns, np.array(trial.user_attrs["coefficients"], dtype=np.float64))


def _add_start(
    study: optuna.Study, objective: Objective, space: Space, announce: Callable[[int, Score | None], None]
) -> None:
    start = space.to_mix(np.zeros(space.dims))
    score = objective.score(start)
    study.add_trial(
        create_trial(
            state=TrialState.COMPLETE,
            value=score.value,
            params=dict.fromkeys(space.labels, 0.0),
            distributions=dict.fromkeys(space.labels, BOX),
            user_attrs={"coefficients": start.coefficients.tolist(), **_facts_of(score)},
        )
    )
    announce(0, score)


def _announce(study: optuna.Study, listener: Listener, number: int, total: int, score: Score | None) -> None:
    known = study.get_trials(deepcopy=False)
    complete = sum(trial.state == TrialState.COMPLETE for trial in known)
    if score is None:
        attributes = known[number].user_attrs
        listener.say(f"trial {number} failed and is replaced: {attributes['error']}", True)
    listener.trial(
        TrialEvent(
            number=number,
            complete=complete,
            total=total,
            value=None if score is None else score.value,
            best=float(_best(study).value or 0.0),
            images_per_second=None if score is None or score.cached else len(score.outcomes) / score.seconds,
        )
    )


def _ask(study: optuna.Study, space: Space, number: int, sampler: BaseSampler) -> None:
    """Make sure that trial ``number`` exists and has all its parameters."""
    known = study.get_trials(deepcopy=False)
    if number < len(known):
        frozen = known[number]
        if frozen.state != TrialState.RUNNING or len(frozen.params) == space.dims:
            return
    study.sampler = sampler
    trial = study.ask() if number >= len(known) else Trial(study, known[number]._trial_id)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        frozen = study.get_trials(deepcopy=False)[number]
        for label in frozen.params:
            # Killed half-way through its parameters: what was drawn one by one is drawn again, so that the
            # sampler's random state is where it was.
            if label not in trial.relative_params:
                sampler.sample_independent(study, frozen, label, BOX)
        _suggest(trial, space)


def _tell_batch(
    study: optuna.Study,
    objective: Objective,
    space: Space,
    batch: Sequence[int],
    deadline: float | None,
    announce: Callable[[int, Score | None], None],
) -> bool:
    """Score and tell the batch's running trials in number order; False where the deadline passed first."""
    for number in batch:
        frozen = study.get_trials(deepcopy=False)[number]
        if frozen.state != TrialState.RUNNING:
            continue
        if _late(deadline):
            return False
        trial = Trial(study, frozen._trial_id)
        mix = space.to_mix(np.array([frozen.params[label] for label in space.labels]))
        trial.set_user_attr("coefficients", mix.coefficients.tolist())
        score: Score | None = None
        started = time.perf_counter()
        try:
            score = objective.score(mix)
        except ScoreError as error:
            trial.set_user_attr("images", len(objective.evaluators[SEARCH].split))
            trial.set_user_attr("seconds", time.perf_counter() - started)
            trial.set_user_attr("error", str(error))
            trial.set_user_attr("group", error.group)
            study.tell(number, state=TrialState.FAIL)
        else:
            for key, value in _facts_of(score).items():
                trial.set_user_attr(key, value)
            study.tell(number, score.value)
        announce(number, score)
        if score is None:
            _stop_after_failures(study, number)
    return True


def _stop_after_failures(study: optuna.Study, number: int) -> None:
    known = study.get_trials(deepcopy=False)
    last = known[max(0, number - FAILURES_ALLOWED) : number + 1]
    if len(last) > FAILURES_ALLOWED and all(trial.state == TrialState.FAIL for trial in last):
        errors = [f"trial {trial.number}: {trial.user_attrs.get('error')}" for trial in last]
        raise ScoreError(
            listing("three trials in a row had losses that are not finite", errors)
            + "\nUse a smaller --radius, other --groups, or leave out the ingredient that overflows"
        )


def _suggest(trial: Trial, space: Space) -> Mix:
    point = [trial.suggest_float(label, BOX.low, BOX.high) for label in space.labels]
    return space.to_mix(np.array(point))


def _facts_of(score: Score) -> dict[str, Any]:
    return {"metrics": score.metrics, "images": score.images, "seconds": score.seconds}


def _seed_for(seed: int, number: int) -> int:
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0] % (2**31 - 1))


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() >= deadline


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back until the block is done; signals reach the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda got, _: caught.append(got))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])


def _mend(journal: Path) -> None:
    """Cut a torn last line off a journal, and remove the lock of a process that is gone."""
    with suppress(FileNotFoundError):
        journal.with_name(journal.name + ".lock").unlink()
    if not journal.exists():
        return
    with journal.open("rb+") as stream:
        content = stream.read()
        if content and not content.endswith(b"\n"):
            stream.truncate(content.rfind(b"\n") + 1)


def _foreign_sampler(name: str, seed: int) -> BaseSampler:
    path, _, attribute = name.partition(":")
    try:
        kind = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError) as error:
        raise SpecError(f"--sampler {name}: cannot import it ({error}); expected package.module:Class") from error
    try:
        seeded = "seed" in inspect.signature(kind).parameters
        sampler = kind(seed=seed) if seeded else kind()
    except (TypeError, ValueError) as error:
        raise SpecError(f"--sampler {name}: cannot be made without arguments other than seed ({error})") from error
    if not isinstance(sampler, BaseSampler):
        raise SpecError(f"--sampler {name}: expected an optuna sampler, found a {type(sampler).__name__}")
    return sampler


def _short(value: Any, width: int = 60) -> str:
    text = json.dumps(value)
    return text if len(text) <= width else f"{text[:width]}..."
