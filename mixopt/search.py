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
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from mixopt.errors import RunError, ScoreError, SpecError, listing
from mixopt.listener import Listener, TrialEvent
from mixopt.metrics import Direction
from mixopt.mix import Mix
from mixopt.objective import Objective, Score
from mixopt.spaces import Space, from_description
from mixopt.stopwatch import Stopwatch

ATTRIBUTE = "mixopt"
FAILURES_ALLOWED = 2
BOX = FloatDistribution(-1.0, 1.0)
SPACE_LEARNERS = ("cmaes", "tpe", "gp")


class _Lock(JournalFileSymlinkLock):
    """Optuna's lock of a journal; with ``held``, it is kept over several writes, which take it at no cost."""

    held = False

    def acquire(self) -> bool:
        return self.held or super().acquire()

    def release(self) -> None:
        if not self.held:
            super().release()


class _WholeWrites(JournalFileBackend):
    """A journal whose writes are timed, and not disturbed by Ctrl-C or SIGTERM.

    Optuna's lock, interrupted while it is taken or released, fails with an error of its own instead.
    """

    def __init__(self, path: str, stopwatch: Stopwatch) -> None:
        self._mutex = _Lock(path)
        super().__init__(path, self._mutex)
        self._stopwatch = stopwatch
        self._written = 0  # logs in the file, as far as known
        self._pending: list[dict[str, Any]] | None = None

    @contextmanager
    def together(self) -> Iterator[None]:
        """Write what the block logs as one: Optuna by itself writes and syncs the file for every parameter.

        Until then the file stays as it was and only this process sees the logs; nobody else may write, so that the
        numbers of trials stay theirs. A block left by an exception, Ctrl-C included, is written as far as it came; a
        killed process loses it.
        """
        try:
            with _signals_wait():
                self._mutex.acquire()
                self._mutex.held, self._pending = True, []
            self._read_on()
            yield
        finally:
            if self._pending is not None:
                self._flush()

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any], None, None]:
        if self._pending is None or log_number_from < self._written:
            yield from super().read_logs(log_number_from)
        if self._pending is not None:
            yield from self._pending[max(0, log_number_from - self._written) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        if self._pending is not None:
            self._pending += json.loads(json.dumps(logs))  # as the file will give them back
            return
        with self._stopwatch("storage"), _signals_wait():
            super().append_logs(logs)

    def _read_on(self) -> None:
        """Count the file's new logs; Optuna, which has not seen where a log begins, would read the file again."""
        self._written += sum(1 for _ in super().read_logs(self._written))

    def _flush(self) -> None:
        with self._stopwatch("storage"), _signals_wait():
            pending, self._pending = self._pending, None
            try:
                if pending:
                    super().append_logs(pending)
                    self._read_on()
            finally:
                self._mutex.held = False
                self._mutex.release()


class _Journal(JournalStorage):
    """Optuna's journal storage of a run folder, which can write many changes as one."""

    def __init__(self, journal: Path, stopwatch: Stopwatch) -> None:
        self._file = _WholeWrites(str(journal), stopwatch)
        self.together = self._file.together
        super().__init__(self._file)


class _KnownSpace(BaseSampler):
    """A sampler that is told the space, which it would otherwise work out from all trials before every ask."""

    def __init__(self, sampler: BaseSampler, labels: Iterable[str]) -> None:
        self._sampler = sampler
        self._space: dict[str, BaseDistribution] = dict.fromkeys(sorted(labels), BOX)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)


class _CmaEs(CmaEsSampler):
    """Optuna's CMA-ES, told a generation once.

    Optuna tells the last generation to the optimizer and stores it (1 MB in 200 dimensions) in every trial until one
    of them is complete; with whole generations asked, in all of them. Here a generation's first trial stores it and
    the others find it there. Where that trial fails, the one that replaces it stores it again, so that a complete
    trial of every generation has it and plain Optuna can go on.
    """

    def __init__(self, seed: int, population: int | None, before: Sequence[FrozenTrial]) -> None:
        super().__init__(seed=seed, popsize=population, warn_independent_sampling=False)
        self._live = [trial for trial in before if trial.state in (TrialState.RUNNING, TrialState.COMPLETE)]

    # The one place that knows Optuna from inside; a test compares with Optuna's own, and counts the optimizers stored.
    def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
        found = super()._restore_optimizer(self._live)
        if found and not any(trial.system_attrs.get("cma:generation") for trial in reversed(completed_trials)):
            # Optuna, which finds none in complete trials, would now draw a seed for a new one.
            self._cma_rng.rng.randint(1, 2**31 - 2)
        return found


def optuna_objective(objective: Objective, space: Space) -> Callable[[Trial], float]:
    """An ordinary Optuna objective, for people's own studies and samplers.

    It suggests one float in [-1, 1] per dimension of the space, scores the mix, records the rows as applied in the
    trial's user attribute ``coefficients``, and returns the objective's signal, by default the driving metric. Create
    the study with ``direction=objective.signal.direction``. A mix whose loss is not finite raises `ScoreError`; pass
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
        return score.signal

    return call


def make_sampler(name: str, seed: int, population: int | None, before: Sequence[FrozenTrial] = ()) -> BaseSampler:
    """A fresh sampler of Optuna.

    Args:
        name: ``cmaes``, ``tpe``, ``gp``, ``random``, or ``package.module:Class``.
        seed: Of its random state.
        population: Of CMA-ES; its own default without.
        before: The study's trials so far, where CMA-ES finds its state.

    Raises:
        SpecError: A class that cannot be imported or is not a sampler.
    """
    if name == "cmaes":
        # The box is centred on the start, so CMA-ES begins there, with a sixth of the range as its step.
        return _CmaEs(seed, population, before)
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
        return _Journal(journal, stopwatch or Stopwatch())
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
    race: bool = False,
) -> bool:
    """Bring a study to so many complete trials, the start included.

    Trial 0 is the start. After it, whole generations are asked, scored, and told in number order. Before every ask
    the sampler is fresh and seeded from (seed, trial number), and a batch's extent follows from the trials before
    it and the number wanted; so the same call, killed at any point, goes on exactly as if it had not been. Running
    trials that a killed process left are finished under their own numbers. A run folder's journal is written once per
    generation asked and once per trial told: a kill loses at most what is asked again, or scored again from the cache.

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
        race: Give trials up that will not reach the best of the generations before theirs; what the sampler is told of
            them is an estimate.

    Returns:
        Whether all trials were completed (False: the deadline passed).

    Raises:
        ScoreError: Three trials in a row were not finite.
    """
    size = population_of(sampler, space.dims, population)
    heard = listener or Listener()

    def announce(number: int, score: Score | None) -> None:
        _announce(study, heard, objective.metric.name, number, trials, score)

    def fresh_sampler(before: Sequence[FrozenTrial]) -> BaseSampler:
        fresh = make_sampler(sampler, _seed_for(seed, len(before)), population, before)
        return _KnownSpace(fresh, space.labels) if sampler in SPACE_LEARNERS else fresh

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
        with objective.stopwatch("optimizer"), _together(study):
            for number in batch:
                _ask(study, space, number, fresh_sampler)
        if not _tell_batch(study, objective, space, batch, deadline, announce, race):
            return False


def best_mixes(study: optuna.Study, space: Space, count: int) -> dict[int, Mix]:
    """Number to mix of the trials with the best values, best first; of equals, the earliest. Estimates do not count."""
    found: dict[int, Mix] = {}
    for trial in _ranked(study.get_trials(deepcopy=False), study.direction):
        mix = _mix_of(trial, space)
        if len(found) < count and mix not in found.values():
            found[trial.number] = mix
    return found


def race_facts(study: optuna.Study, steering: int) -> dict[str, Any]:
    """How many trials were given up, and what share of the images that spared."""
    images = [trial.user_attrs["images"] for trial in study.get_trials(deepcopy=False) if "images" in trial.user_attrs]
    given_up = sum(bool(trial.user_attrs.get("estimated")) for trial in study.get_trials(deepcopy=False))
    return {"given_up": given_up, "images": sum(images), "unraced_images": len(images) * steering}


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
    return _best_of(study.get_trials(deepcopy=False), study.direction)


def _best_of(trials: Sequence[FrozenTrial], direction: optuna.study.StudyDirection) -> FrozenTrial:
    return _ranked(trials, direction)[0]


def _ranked(trials: Sequence[FrozenTrial], direction: optuna.study.StudyDirection) -> list[FrozenTrial]:
    """The complete trials that were scored on all samples, best first; of equals, the earliest."""
    sign = -1 if direction == optuna.study.StudyDirection.MAXIMIZE else 1
    scored = [each for each in trials if each.state == TrialState.COMPLETE and not each.user_attrs.get("estimated")]
    return sorted(scored, key=lambda trial: (sign * float(trial.value or 0.0), trial.number))


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
            value=score.signal,
            params=dict.fromkeys(space.labels, 0.0),
            distributions=dict.fromkeys(space.labels, BOX),
            user_attrs={"coefficients": start.coefficients.tolist(), **_facts_of(score)},
        )
    )
    announce(0, score)


def _announce(
    study: optuna.Study, listener: Listener, metric: str, number: int, total: int, score: Score | None
) -> None:
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
            best=float(_best(study).user_attrs["metrics"][metric]),
            images_per_second=None if score is None or score.cached else score.images / score.seconds,
        )
    )


def _ask(
    study: optuna.Study, space: Space, number: int, fresh_sampler: Callable[[Sequence[FrozenTrial]], BaseSampler]
) -> None:
    """Make sure that trial ``number`` exists and has all its parameters."""
    known = study.get_trials(deepcopy=False)
    asked = known[number] if number < len(known) else None
    if asked and (asked.state != TrialState.RUNNING or len(asked.params) == space.dims):
        return
    study.sampler = fresh_sampler(known[:number])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        trial = Trial(study, asked._trial_id) if asked else study.ask()
        if asked:
            # Killed half-way through its parameters: what was drawn one by one is drawn again, so that the
            # sampler's random state is where it was.
            for label in asked.params:
                if label not in trial.relative_params:
                    study.sampler.sample_independent(study, asked, label, BOX)
        _suggest(trial, space)


def _together(study: optuna.Study) -> AbstractContextManager[None]:
    """What the block writes to the study is one write, where the study is kept in a run folder's journal."""
    storage = study._storage  # a study does not name its storage otherwise; a test counts the writes
    return storage.together() if isinstance(storage, _Journal) else nullcontext()


def _tell_batch(
    study: optuna.Study,
    objective: Objective,
    space: Space,
    batch: Sequence[int],
    deadline: float | None,
    announce: Callable[[int, Score | None], None],
    race: bool,
) -> bool:
    """Score and tell the batch's running trials in number order; False where the deadline passed first."""
    incumbent: Score | None = None
    for number in batch:
        frozen = study.get_trials(deepcopy=False)[number]
        if frozen.state != TrialState.RUNNING:
            continue
        if _late(deadline):
            return False
        trial = Trial(study, frozen._trial_id)
        mix = space.to_mix(np.array([frozen.params[label] for label in space.labels]))
        score: Score | None = None
        started = time.perf_counter()
        try:
            if race and incumbent is None:
                before = study.get_trials(deepcopy=False)[: batch[0]]
                incumbent = objective.score(_mix_of(_best_of(before, study.direction), space))
            score = objective.score(mix) if incumbent is None else objective.race(mix, incumbent)
            facts = _facts_of(score)
        except ScoreError as error:
            facts = {
                "images": objective.samples,
                "seconds": time.perf_counter() - started,
                "error": str(error),
                "group": error.group,
            }
        with _together(study):
            for key, value in {"coefficients": mix.coefficients.tolist(), **facts}.items():
                trial.set_user_attr(key, value)
            if score is None:
                study.tell(number, state=TrialState.FAIL)
            else:
                study.tell(number, score.signal)
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
    facts: dict[str, Any] = {"metrics": score.metrics, "images": score.images, "seconds": score.seconds}
    if score.beside:
        facts["beside"] = {name: each.metrics for name, each in score.beside.items()}
    return {**facts, "estimated": True} if score.estimated else facts


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


def read_trials(journal: Path) -> list[dict[str, Any]]:
    """The complete trials of a run folder's journal, in number order, for reports; nothing is written.

    Args:
        journal: The journal file of a run that has ended.

    Returns:
        For each, ``{"trial": number, "value": what the sampler was told, "images": scored, "estimated": given up
        early}``; trials of several values are left out.

    Raises:
        RunError: Not a journal of one study.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        study = optuna.load_study(study_name=None, storage=JournalStorage(JournalFileBackend(str(journal))))
    except (OSError, ValueError, KeyError, optuna.exceptions.OptunaError) as error:
        raise RunError(f"{journal}: the study cannot be read ({error})") from error
    return [
        {
            "trial": trial.number,
            "value": trial.values[0],
            "images": trial.user_attrs.get("images", 0),
            "estimated": bool(trial.user_attrs.get("estimated")),
        }
        for trial in study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        if len(trial.values) == 1
    ]
