"""What a study and its trials say, checked once where it is opened, resumed or read for a report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from mixopt.errors import MixoptError, RunError
from mixopt.spaces import Space, from_description
from mixopt.study.boundary import RESTORE, name_of
from mixopt.study.samplers import BOX
from mixopt.untrusted import READER_ERRORS, reason_of
from mixopt.untrusted.texts import check_depth
from mixopt.values.mix import Mix

ATTRIBUTE = "mixopt"
# What a batch of the surface sampler is called in the first of its trials.
BATCH = "surface:batch"
SECOND = "-refine"  # what the second round's study is called after the first one's name

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Metrics = dict[str, FiniteFloat]
# Before the name of every checkpoint in a study's identity.
_CHECKPOINT = "checkpoint "
_RAISED: tuple[type[Exception], ...] = (*READER_ERRORS, MixoptError)


class Record(BaseModel):
    """The user attributes of a trial that are read again; others are anybody's.

    Attributes:
        coefficients: The rows as applied.
        metrics: What was measured, by name.
        images: How many samples went through a model.
        seen: How many of the validation split were scored.
        seconds: How long that took.
        estimated: Whether the trial was given up, and its value is an estimate.
        signals: What the sampler was told of each split that steers.
        weighted: Their weighted mean.
        beside: Split to its metrics, of those that steer beside the validation split.
        error: Why it failed.
    """

    model_config = ConfigDict(strict=True, frozen=True)

    coefficients: list[list[FiniteFloat]] = Field(default=[])
    metrics: _Metrics = Field(default={})
    images: _Count = 0
    seconds: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    seen: _Count | None = None
    estimated: bool = False
    signals: _Metrics = Field(default={})
    weighted: FiniteFloat = 0.0
    beside: dict[str, _Metrics] = Field(default={})
    error: str = ""


class _SamplerNotes(BaseModel):
    """The system attributes of a trial that Optuna's samplers read again, but for CMA-ES's optimizers."""

    model_config = ConfigDict(strict=True)

    generation: Annotated[int, Field(ge=0, lt=2**31)] = 0
    constraints: list[FiniteFloat] = Field(default=[])
    constraint: FiniteFloat = 0.0
    fixed_params: dict[str, FiniteFloat] = Field(default={})
    relative_params: dict[str, FiniteFloat] = Field(default={})


class _Batch(BaseModel):
    """What `mixopt.study.surface_sampler` keeps of points asked together, in the first of their trials."""

    model_config = ConfigDict(strict=True)

    points: Annotated[list[list[Annotated[float, Field(ge=BOX.low, le=BOX.high)]]], Field(min_length=1)]
    expected: list[FiniteFloat]
    half: Annotated[float, Field(gt=0, le=BOX.high - BOX.low)]

    def check(self, dims: int | None) -> None:
        """Refuse points of another space, and predictions of other points."""
        sizes = {len(point) for point in self.points}
        if sizes != {dims or len(self.points[0])}:
            wanted = "the same" if dims is None else dims
            raise ValueError(f"its {BATCH} has points of {min(sizes)} to {max(sizes)} numbers, expected {wanted}")
        if len(self.expected) not in (0, len(self.points)):
            raise ValueError(f"its {BATCH} has {len(self.points)} points, and predicts {len(self.expected)}")


class _Parents(BaseModel):
    """What NSGA-II keeps of a generation in a study."""

    model_config = ConfigDict(strict=True)

    parents: list[Annotated[int, Field(ge=0, lt=2**63)]]


class _Scored(BaseModel):
    """What a study keeps of a mix that was scored before it: one row, or one for each layer group."""

    model_config = ConfigDict(strict=True)

    rows: list[list[FiniteFloat]]
    seen: _Count


class _Stored(BaseModel):
    """What mixopt keeps of a study."""

    model_config = ConfigDict(strict=True)

    identity: dict[str, Any]
    space: dict[str, Any]
    evidence: list[_Scored] = Field(default=[])


def check_study(study: optuna.Study, metric: str | None = None) -> None:
    """Check what a study and its trials say, whoever wrote it.

    Trials that somebody else told FAIL need not say anything.

    Args:
        study: The study.
        metric: What drives, where it is to be found in every trial.

    Raises:
        RunError: Something is missing, or is not of the form in which it was written; names the storage and trial.
    """
    where = name_of(study._storage)
    stored = study.user_attrs.get(ATTRIBUTE)
    if isinstance(stored, dict) and "identity" not in stored:
        return  # of another version, and refused as such
    at = f"study {study.study_name!r}"
    try:
        space = None if stored is None else _space_of(stored)
        for name, value in study._storage.get_study_system_attrs(study._study_id).items():
            if ":parent:" in name:
                _Parents(parents=value)
        checks = _Checks(study, space, metric)
        for number, trial in enumerate(study.get_trials(deepcopy=False)):
            at = f"trial {number}" if SECOND not in study.study_name else f"trial {number} of {study.study_name!r}"
            checks.check(number, trial)
    except RunError:
        raise  # of the storage itself
    except _RAISED as error:
        reason = _first_of(error) if isinstance(error, ValidationError) else reason_of(error)
        raise RunError(f"{where}: {at} does not say what mixopt writes ({reason}); {RESTORE}") from error


class _Checks:
    """What the trials of a study are held against.

    Args:
        study: The study.
        space: Its space; without, only what is there is checked.
        metric: What every trial was measured by; None checks none.
    """

    def __init__(self, study: optuna.Study, space: Space | None, metric: str | None) -> None:
        self._space = space
        self._start = None if space is None else space.to_mix(np.zeros(space.dims))
        self._labels = frozenset(() if space is None else space.labels)
        self._metric = metric
        self._count = len(study.directions)
        self._splits: tuple[str, ...] | None = None

    def check(self, number: int, trial: FrozenTrial) -> None:
        """Refuse a trial by raising one of `_RAISED`."""
        if trial.number != number:
            raise ValueError(f"its number is {trial.number}")
        if number == 0 and self._space is not None and trial.state != TrialState.COMPLETE:
            raise ValueError(f"it is the start, but {trial.state.name.lower()}")
        if trial.state == TrialState.FAIL and "images" not in trial.user_attrs:
            return  # told by somebody else
        said = trial.user_attrs
        record = Record(**{name: said[name] for name in Record.model_fields if name in said})
        _check_notes(trial.system_attrs, None if self._space is None else self._space.dims)
        if self._start is None:
            return
        if missing := self._required(trial.state) - said.keys():
            raise ValueError(f"it has no {min(missing)}")
        if "coefficients" in said:
            Mix(self._start.groups, self._start.columns, np.array(record.coefficients))
        if trial.state != TrialState.FAIL:
            self._check_params(trial)
        if trial.state == TrialState.COMPLETE:
            self._check_values(trial, record)

    def _required(self, state: TrialState) -> set[str]:
        if state == TrialState.FAIL:
            return {"coefficients", "images", "seconds"}
        if state != TrialState.COMPLETE:
            return set()
        several = {"signals", "weighted"} if self._count > 1 else set()
        return {"coefficients", "images", "metrics", "seconds", *several}

    def _check_params(self, trial: FrozenTrial) -> None:
        if not trial.params.keys() <= self._labels or (
            trial.state == TrialState.COMPLETE and len(trial.params) < len(self._labels)
        ):
            raise ValueError("its parameters are not the dimensions of the space")
        for label, value in trial.params.items():
            if trial.distributions[label] != BOX or not BOX.low <= value <= BOX.high:
                raise ValueError(f"its parameter {label} is not a number from {BOX.low:g} to {BOX.high:g}")

    def _check_values(self, trial: FrozenTrial, record: Record) -> None:
        values = trial.values or []
        if len(values) != self._count or not np.all(np.isfinite(values)):
            raise ValueError(f"its values are {values}, where the study has {self._count}")
        if self._metric is not None and self._metric not in record.metrics:
            raise ValueError(f"its metrics lack {self._metric}")
        splits = tuple(record.signals)
        if self._splits is None:
            self._splits = splits
        if splits != self._splits or (self._count > 1 and len(splits) != self._count):
            raise ValueError("its signals are not those of the splits that steer")


def space_of(study: optuna.Study) -> Space:
    """The space that a study keeps.

    Raises:
        RunError: It is not the description of one.
    """
    try:
        return _space_of(study.user_attrs.get(ATTRIBUTE))
    except _RAISED as error:
        reason = _first_of(error) if isinstance(error, ValidationError) else reason_of(error)
        where = f"{name_of(study._storage)}: study {study.study_name!r}"
        raise RunError(f"{where} has no space that can be read ({reason}); {RESTORE}") from error


def _space_of(stored: Any) -> Space:
    kept = _Stored.model_validate(stored)
    space = from_description(kept.space)
    for each in kept.evidence:
        start = space.to_mix(np.zeros(space.dims))
        Mix(start.groups, start.columns, np.broadcast_to(np.array(each.rows), start.coefficients.shape))
    known = {key.removeprefix(_CHECKPOINT) for key in kept.identity if key.startswith(_CHECKPOINT)}
    strange = set(space.to_mix(np.zeros(space.dims)).columns) - known
    if known and strange:
        raise ValueError(f"its space has the checkpoint {min(strange)!r}, which its pool has not")
    return space


def _check_notes(notes: Mapping[str, Any], dims: int | None) -> None:
    """Check the notes of samplers that are read again, of a space of so many dimensions where that is known."""
    drawn: list[str] = []
    for key, value in notes.items():
        if key.endswith(":generation"):
            _SamplerNotes(generation=value)
        elif key in ("constraints", "fixed_params"):
            _SamplerNotes(**{key: value})
        elif key == BATCH:
            _Batch.model_validate(value).check(dims)
        elif key.startswith("constraints:"):
            _SamplerNotes(constraint=value)
        elif ":relative_params:" in key:
            if not isinstance(value, str):
                raise ValueError(f"its {key} is no text")
            drawn.append(value)
    if drawn:
        with suppress(json.JSONDecodeError):  # written in part, which Optuna passes over
            check_depth("".join(drawn))
            _SamplerNotes(relative_params=json.loads("".join(drawn)))


def _first_of(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(each) for each in found["loc"])
    shown = repr(found["input"])
    return f"{place}: {found['msg'].lower()}, found {shown if len(shown) <= 40 else shown[:40] + '...'}"
