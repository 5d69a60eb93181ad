"""The lines of a journal: each is one operation of Optuna, of known keys and types, and chained to all before it.

A line that mixopt writes ends with a sum of itself and of everything before it, which plain Optuna passes over. So a
changed, lost or exchanged line is noticed where the next sum stands. Lines without one, which plain Optuna or an older
version wrote, are taken for what they say.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import TrialState

from mixopt.errors import RunError
from mixopt.study import log_values
from mixopt.study.boundary import RESTORE
from mixopt.untrusted import READER_ERRORS, reason_of
from mixopt.untrusted.texts import json_of

Log = dict[str, Any]

SUM = "sum"
_SUMMED = re.compile(rb'(.*),"sum":"([0-9a-f]{16})"\}', re.DOTALL)


class _WrongError(Exception):
    """What is wrong with a line."""


@dataclass
class Lines:
    """A journal's lines, as far as they have been read.

    Attributes:
        journal: The file, for messages.
        number: How many lines were read.
    """

    journal: Path
    number: int = 0
    _sum: bytes = b""
    # Of every study made: its name and how many values its trials have; of every trial its study.
    _studies: list[tuple[str, int]] = field(default_factory=list)
    _kept: dict[str, int] = field(default_factory=dict)
    _trials: list[int] = field(default_factory=list)

    def read(self, line: bytes) -> Log:
        """The operation of the next line.

        Raises:
            RunError: It is none, or not the one that was written there.
        """
        where = f"{self.journal}: line {self.number + 1}"
        content = line.rstrip(b"\r\n")
        summed = _SUMMED.fullmatch(content)
        found = _next_sum(self._sum, summed[1] + b"}" if summed else content)
        if summed and found.hex().encode() != summed[2]:
            raise RunError(
                f"{where}: expected the checksum {found.hex()}, found {summed[2].decode()}: this line or one before it "
                f"was changed, lost or moved; {RESTORE}"
            )
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            raise RunError(f"{where}: expected UTF-8 text, found other bytes; {RESTORE}") from error
        log = json_of(text, where, RunError, cure=RESTORE)
        try:
            _check_log(log, bool(summed))
            _OPERATIONS[log["op_code"]].follow(self, log)
        except _WrongError as error:
            raise RunError(f"{where}: expected an operation of Optuna's journal, but {error}; {RESTORE}") from None
        self.number += 1
        self._sum = found
        return log  # type: ignore[no-any-return]

    def sealed(self, logs: Sequence[Log]) -> list[Log]:
        """Operations to be written next, each with its sum."""
        before, found = self._sum, []
        for log in logs:
            before = _next_sum(before, json.dumps(log, separators=(",", ":")).encode())
            found.append({**log, SUM: before.hex()})
        return found

    def create_study(self, log: Log) -> None:
        """Count a study; one of a name that exists is passed over, as by Optuna."""
        if log["study_name"] not in self._kept:
            self._kept[log["study_name"]] = len(self._studies)
            self._studies.append((log["study_name"], len(log["directions"])))

    def delete_study(self, log: Log) -> None:
        """Forget a study's name."""
        self.of_study(log)
        self._kept.pop(self._studies[log["study_id"]][0], None)

    def of_study(self, log: Log) -> None:
        """Refuse what is about a study that was never made."""
        if log["study_id"] >= len(self._studies):
            raise _WrongError(f"there is no study {log['study_id']} before it")

    def create_trial(self, log: Log) -> None:
        """Count a trial."""
        self.of_study(log)
        study = log["study_id"]
        if self._studies[study][0] not in self._kept or self._kept[self._studies[study][0]] != study:
            return  # of a study that was deleted; passed over, as by Optuna
        if "state" in log:
            values = log.get("values") if log.get("value") is None else [log["value"]]
            self._check_values(study, log["state"], values)
            if log.get("value") is not None and log.get("values") is not None:
                raise _WrongError("it has both value and values")
            _check_template(log)
        self._trials.append(study)

    def of_trial(self, log: Log) -> None:
        """Refuse what is about a trial that was never made."""
        if log["trial_id"] >= len(self._trials):
            raise _WrongError(f"there is no trial {log['trial_id']} before it")

    def set_param(self, log: Log) -> None:
        """Refuse a parameter that its distribution does not hold."""
        self.of_trial(log)
        _check_inside(log["param_name"], log["param_value_internal"], _distribution(log["distribution"]))

    def set_state(self, log: Log) -> None:
        """Refuse a state without what belongs to it."""
        self.of_trial(log)
        self._check_values(self._trials[log["trial_id"]], log["state"], log["values"])
        time = "datetime_start" if log["state"] == TrialState.RUNNING else "datetime_complete"
        if log["state"] != TrialState.WAITING and time not in log:
            raise _WrongError(f"it has no {time}")

    def _check_values(self, study: int, state: int, values: Sequence[float] | None) -> None:
        wanted = self._studies[study][1]
        if values is None and state == TrialState.COMPLETE:
            raise _WrongError("it completes a trial without a value")
        if values is not None and len(values) != wanted:
            raise _WrongError(f"it has {len(values)} values, where the study has {wanted}")


def _next_sum(before: bytes, body: bytes) -> bytes:
    return blake2b(body, digest_size=8, key=before).digest()


def _check_log(log: Any, is_summed: bool) -> None:
    """Refuse what is not an operation with all its keys, no others, and values of their types."""
    if type(log) is not dict:
        raise _WrongError(f"it is {_short(log)}")
    code = log.get("op_code")
    if type(code) is not int or code not in _OPERATIONS:
        raise _WrongError(f"its op_code is {_short(code)}")
    operation = _OPERATIONS[code]
    if not operation.required.keys() <= log.keys():
        raise _WrongError(f"it has no {min(operation.required.keys() - log.keys())}")
    for key, value in log.items():
        check = operation.checks.get(key)
        if check is None:
            if key == SUM and is_summed:
                continue
            raise _WrongError(f"it has the key {_short(key)}")
        if not check(value):
            raise _WrongError(f"its {key} is {_short(value)}")


def _short(value: Any, width: int = 40) -> str:
    text = json.dumps(value)
    return text if len(text) <= width else f"{text[:width]}..."


def _check_template(log: Log) -> None:
    """Refuse a trial that is written as a whole, but lacks something."""
    distributions = log.get("distributions", {})
    for name, value in log.get("params", {}).items():
        if name not in distributions:
            raise _WrongError(f"its parameter {_short(name)} has no distribution")
        _check_inside(name, value, _distribution(distributions[name]))
    if log["state"] in _FINISHED and "datetime_complete" not in log:
        raise _WrongError("it has no datetime_complete")
    for text in distributions.values():
        _distribution(text)


def _check_inside(name: str, value: float, distribution: BaseDistribution) -> None:
    if not distribution._contains(value):
        raise _WrongError(f"its parameter {_short(name)} is {value}, outside its distribution")


def _distribution(text: str) -> BaseDistribution:
    found = _KNOWN.get(text)
    if found is None:
        try:
            json_of(text, "", RunError)  # bounds it
            found = json_to_distribution(text)
        except _DISTRIBUTION_ERRORS as error:
            raise _WrongError(f"its distribution is {_short(text)} ({reason_of(error)})") from error
        if len(_KNOWN) < _MOST_KNOWN:
            _KNOWN[text] = found
    return found


@dataclass(frozen=True)
class _Operation:
    """What a line of one op_code must hold, how each of its values is checked, and what follows from it."""

    required: Mapping[str, Callable[[Any], bool]]
    checks: Mapping[str, Callable[[Any], bool]]
    follow: Callable[[Lines, Log], None]


def _operation(
    follow: Callable[[Lines, Log], None],
    own: Mapping[str, Callable[[Any], bool]],
    optional: Mapping[str, Callable[[Any], bool]] | None = None,
) -> _Operation:
    required = {"op_code": log_values.is_count, "worker_id": log_values.is_text, **own}
    return _Operation(required, {**required, **(optional or {})}, follow)


_DISTRIBUTION_ERRORS: tuple[type[Exception], ...] = (*READER_ERRORS, RunError)
_FINISHED = frozenset(int(state) for state in TrialState if state.is_finished())
# Texts of distributions that were read already; a study has few.
_KNOWN: dict[str, BaseDistribution] = {}
_MOST_KNOWN = 1_000
_WHOLE_TRIAL: dict[str, Callable[[Any], bool]] = {
    "state": log_values.is_state,
    "value": log_values.is_no_number_or_one,
    "values": log_values.is_numbers,
    "datetime_complete": log_values.is_time,
    "distributions": log_values.is_distributions,
    "params": log_values.is_params,
    "user_attrs": log_values.is_attributes,
    "system_attrs": log_values.is_attributes,
    "intermediate_values": log_values.is_steps,
}
# DISCARD_TRIALS, which Optuna itself neither writes nor follows, is not among them.
_OPERATIONS: dict[int, _Operation] = {
    JournalOperation.CREATE_STUDY: _operation(
        Lines.create_study, {"study_name": log_values.is_text, "directions": log_values.is_directions}
    ),
    JournalOperation.DELETE_STUDY: _operation(Lines.delete_study, {"study_id": log_values.is_count}),
    JournalOperation.SET_STUDY_USER_ATTR: _operation(
        Lines.of_study, {"study_id": log_values.is_count, "user_attr": log_values.is_attribute}
    ),
    JournalOperation.SET_STUDY_SYSTEM_ATTR: _operation(
        Lines.of_study, {"study_id": log_values.is_count, "system_attr": log_values.is_attribute}
    ),
    JournalOperation.CREATE_TRIAL: _operation(
        Lines.create_trial,
        {"study_id": log_values.is_count, "datetime_start": log_values.is_no_time_or_one},
        _WHOLE_TRIAL,
    ),
    JournalOperation.SET_TRIAL_PARAM: _operation(
        Lines.set_param,
        {
            "trial_id": log_values.is_count,
            "param_name": log_values.is_text,
            "param_value_internal": log_values.is_number,
            "distribution": log_values.is_text,
        },
    ),
    JournalOperation.SET_TRIAL_STATE_VALUES: _operation(
        Lines.set_state,
        {"trial_id": log_values.is_count, "state": log_values.is_state, "values": log_values.is_numbers},
        {"datetime_start": log_values.is_time, "datetime_complete": log_values.is_time},
    ),
    JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE: _operation(
        Lines.of_trial,
        {"trial_id": log_values.is_count, "step": log_values.is_count, "intermediate_value": log_values.is_float},
    ),
    JournalOperation.SET_TRIAL_USER_ATTR: _operation(
        Lines.of_trial, {"trial_id": log_values.is_count, "user_attr": log_values.is_attribute}
    ),
    JournalOperation.SET_TRIAL_SYSTEM_ATTR: _operation(
        Lines.of_trial, {"trial_id": log_values.is_count, "system_attr": log_values.is_attribute}
    ),
}
