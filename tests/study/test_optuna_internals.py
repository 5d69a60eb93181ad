"""What mixopt.study takes from inside Optuna, member by member: where one moves, the test that fails names it."""

from __future__ import annotations

import inspect
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, FloatDistribution, json_to_distribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler
from optuna.storages import JournalStorage, RDBStorage, get_storage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._base import BaseJournalSnapshot
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, Trial, TrialState
from packaging.requirements import Requirement

from mixopt.study import open_storage, samplers
from mixopt.study.logs import Lines

# Member, its parameters, and who rests on it.
SIGNATURES: list[tuple[Callable[..., Any], list[str], str]] = [
    (CmaEsSampler._restore_optimizer, ["self", "completed_trials"], "samplers replaces it, in users' own too"),
    (CmaEsSampler._split_optimizer_str, ["self", "optimizer_str"], "optimizers.restore puts its parts together"),
    (BaseDistribution._contains, ["self", "param_value_in_internal_repr"], "logs calls it"),
    (json_to_distribution, ["json_str"], "logs calls it"),
    (NSGAIISampler._get_generation_key, [], "samplers.start_attributes calls it"),
    (NSGAIISampler.get_parent_population, ["self", "study", "generation"], "samplers.NSGAIISampler overrides it"),
    (BaseSampler.infer_relative_search_space, ["self", "study", "trial"], "samplers._KnownSpace overrides it"),
    (BaseSampler.sample_relative, ["self", "study", "trial", "search_space"], "samplers._KnownSpace overrides it"),
    (
        BaseSampler.sample_independent,
        ["self", "study", "trial", "param_name", "param_distribution"],
        "samplers._KnownSpace overrides it",
    ),
    (Trial.__init__, ["self", "study", "trial_id"], "trials makes trials by their ids"),
    (JournalStorage.__init__, ["self", "log_storage"], "storage._Journal calls it"),
    (JournalFileBackend.__init__, ["self", "file_path", "lock_obj"], "storage._WholeWrites calls it"),
    (JournalFileBackend.read_logs, ["self", "log_number_from"], "storage._WholeWrites overrides it"),
    (JournalFileBackend.append_logs, ["self", "logs"], "storage._WholeWrites overrides it"),
    (JournalFileSymlinkLock.acquire, ["self"], "storage._Lock overrides it"),
    (JournalFileSymlinkLock.release, ["self"], "storage._Lock overrides it"),
]


@pytest.fixture
def study() -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(directions=["maximize"])


@pytest.mark.parametrize(
    ("member", "expected", "user"), SIGNATURES, ids=[member.__qualname__ for member, _, _ in SIGNATURES]
)
def test_signatures_are_those_that_are_overridden(member: Callable[..., Any], expected: list[str], user: str) -> None:
    found = list(inspect.signature(member).parameters)
    assert found == expected, f"Optuna {optuna.__version__}: {member.__qualname__} has other parameters; {user}"


def test_the_version_is_one_that_is_allowed() -> None:
    """Raise the bound in pyproject.toml once the tests of this folder pass with the new version."""
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["dependencies"]
    (optunas,) = (found for found in map(Requirement, declared) if found.name == "optuna")
    assert optunas.specifier.contains(optuna.__version__)
    assert any(each.operator == "<" for each in optunas.specifier)


def test_cma_es_draws_its_seeds_from_cma_rng() -> None:
    """`_CmaEs._restore_optimizer` draws one in its place."""
    ours, theirs = samplers._CmaEs(3, None, [], lambda *_: None), CmaEsSampler(seed=3)
    assert ours._cma_rng.rng.randint(1, 2**31 - 2) == theirs._cma_rng.rng.randint(1, 2**31 - 2)


def test_cma_es_marks_the_generation_in_its_trials(study: optuna.Study) -> None:
    """By the key that `_CmaEs` looks for, in trials that its `_restore_optimizer` is given."""
    given: list[list[FrozenTrial]] = []

    class Watched(CmaEsSampler):
        def _restore_optimizer(self, completed_trials: list[FrozenTrial]) -> Any:
            given.append(completed_trials)
            return super()._restore_optimizer(completed_trials)

    study.sampler = Watched(seed=0, popsize=4, warn_independent_sampling=False)
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1) + trial.suggest_float("y", -1, 1), n_trials=6)
    assert given
    assert [trial.number for trial in given[-1]] == [0, 1, 2, 3, 4]
    assert any("cma:generation" in trial.system_attrs for trial in study.trials)


def test_nsga_ii_stores_generations_under_the_name_of_its_class(study: optuna.Study) -> None:
    key = NSGAIISampler._get_generation_key()
    assert samplers.NSGAIISampler._get_generation_key() == key
    study.sampler = NSGAIISampler(population_size=2, seed=0)
    study.optimize(lambda trial: trial.suggest_float("x", -1, 1), n_trials=3)
    assert [trial.system_attrs[key] for trial in study.trials] == [0, 0, 1]


def test_a_study_has_its_storage_and_a_trial_its_id(study: optuna.Study) -> None:
    asked = study.ask()
    (frozen,) = study.get_trials(states=[TrialState.RUNNING])
    assert asked._trial_id == frozen._trial_id
    assert Trial(study, frozen._trial_id).number == asked.number
    assert study._storage.get_trial(frozen._trial_id).number == asked.number


def test_a_journal_is_locked_by_a_file_beside_it_and_through_the_lock_that_it_is_given(tmp_path: Path) -> None:
    """`storage._mend` removes that file; `storage._WholeWrites` keeps the lock over several writes."""
    journal = tmp_path / "study.journal"
    taken: list[list[str]] = []

    class Watched(JournalFileSymlinkLock):
        def acquire(self) -> bool:
            found = super().acquire()
            taken.append(sorted(path.name for path in tmp_path.iterdir()))
            return found

    backend = JournalFileBackend(str(journal), Watched(str(journal)))
    backend.append_logs([{"one": 1}, {"two": 2}])
    assert taken == [["study.journal", "study.journal.lock"]]
    assert [path.name for path in tmp_path.iterdir()] == ["study.journal"]
    assert list(backend.read_logs(1)) == [{"two": 2}]
    assert journal.read_bytes().count(b"\n") == 2


def test_a_journal_has_the_operations_that_are_checked_line_by_line(tmp_path: Path) -> None:
    """`logs` knows the keys of each; another operation, or other keys, would be refused as damage."""
    assert {each.value: each.name for each in JournalOperation} == {
        0: "CREATE_STUDY",
        1: "DELETE_STUDY",
        2: "SET_STUDY_USER_ATTR",
        3: "SET_STUDY_SYSTEM_ATTR",
        4: "CREATE_TRIAL",
        5: "SET_TRIAL_PARAM",
        6: "SET_TRIAL_STATE_VALUES",
        7: "SET_TRIAL_INTERMEDIATE_VALUE",
        8: "SET_TRIAL_USER_ATTR",
        9: "SET_TRIAL_SYSTEM_ATTR",
        10: "DISCARD_TRIALS",
    }
    journal = tmp_path / "study.journal"
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(journal))), study_name="x")
    other = optuna.create_study(storage=study._storage, study_name="y", directions=["minimize", "maximize"])
    study.set_user_attr("one", 1)
    study._storage.set_study_system_attr(study._study_id, "one", 1)
    study.enqueue_trial({"a": 0.5})
    for state in (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL):
        trial = study.ask()
        trial.suggest_float("a", -1, 1)
        trial.suggest_int("b", 1, 8, log=True)
        trial.suggest_categorical("c", ["x", None, 1])
        trial.report(float("nan"), 3)
        trial.set_user_attr("one", {"two": [1]})
        study._storage.set_trial_system_attr(trial._trial_id, "one", 1)
        study.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state=state)
    study.add_trials(study.trials)
    other.add_trial(optuna.trial.create_trial(values=[1, 2]))
    optuna.delete_study(study_name="y", storage=study._storage)
    assert {json.loads(line)["op_code"] for line in journal.read_bytes().splitlines()} == set(range(10))
    lines = Lines(journal)
    for line in journal.read_bytes().splitlines():
        lines.read(line)
    assert optuna.load_study(study_name="x", storage=open_storage(journal, None)).trials == study.trials


def test_a_journal_is_written_as_the_sums_expect(tmp_path: Path) -> None:
    """Of a line's text, without spaces; a sum stands at the end of its line."""
    backend = JournalFileBackend(str(tmp_path / "study.journal"))
    backend.append_logs([{"a": [1, 2], "sum": "x"}])
    assert (tmp_path / "study.journal").read_bytes() == b'{"a":[1,2],"sum":"x"}\n'
    assert backend._file_path == str(tmp_path / "study.journal")


def test_only_cma_es_and_snapshots_are_unpickled() -> None:
    """Wherever else Optuna came to unpickle, a study of a stranger would run code; snapshots are Redis's alone."""
    folder = Path(optuna.__file__).parent
    found = {
        str(path.relative_to(folder)): count
        for path in folder.rglob("*.py")
        if "testing" not in path.parts
        and (count := len(re.findall(r"(?i)\b(?:pickle|dill)\.load|unpickler|PickleType", path.read_text())))
    }
    assert found == {"samplers/_cmaes.py": 1, "storages/journal/_storage.py": 1}
    assert not issubclass(JournalFileBackend, BaseJournalSnapshot)


def test_a_storage_of_a_url_is_a_database_that_has_it() -> None:
    storage: Any = get_storage("sqlite:///:memory:")
    assert isinstance(storage._backend, RDBStorage)
    assert storage._backend.url == "sqlite:///:memory:"


def test_cma_es_keeps_its_optimizer_under_keys_of_its_kind(study: optuna.Study) -> None:
    sampler = CmaEsSampler(seed=0, popsize=4)
    assert sampler._attr_key_optimizer == "cma:optimizer"
    assert list(sampler._split_optimizer_str("ab")) == ["cma:optimizer:0"]
    assert FloatDistribution(-1, 1)._contains(1.0)
