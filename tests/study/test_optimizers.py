"""Stored optimizers of CMA-ES: the same ones come back, nothing that a pickle names is run, damage is one error."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cmaes
import numpy as np
import optuna
import pytest
from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from mixopt import RunError
from mixopt.study.optimizers import restore
from mixopt.study.samplers import make_sampler

DIMS, POPULATION = 5, 6
BOUNDS = np.tile([0.0, 1.0], (DIMS, 1))
KINDS: dict[str, Callable[..., Any]] = {
    "plain": cmaes.CMA,
    "adaptive": lambda **options: cmaes.CMA(**options, lr_adapt=True),
    "separable": cmaes.SepCMA,
    "margin": lambda **options: cmaes.CMAwM(**options, steps=np.zeros(DIMS)),
}


def optimizer_of(kind: str = "plain", generations: int = 3) -> Any:
    found = KINDS[kind](
        mean=np.full(DIMS, 0.5),
        sigma=0.2,
        bounds=BOUNDS,
        seed=3,
        population_size=POPULATION,
        n_max_resampling=10 * DIMS,
    )
    for _ in range(generations):
        asked = [found.ask() for _ in range(POPULATION)]
        points = [point[1] if isinstance(point, tuple) else point for point in asked]
        found.tell([(point, float(np.sum(point**2))) for point in points])
    return found


def stored(content: bytes | str, parts: int = 3) -> FrozenTrial:
    text = content if isinstance(content, str) else content.hex()
    size = -(-len(text) // parts)
    attributes = {f"cma:optimizer:{number}": text[number * size : (number + 1) * size] for number in range(parts)}
    return numbered(attributes)


def numbered(attributes: dict[str, Any]) -> FrozenTrial:
    trial = create_trial(state=TrialState.COMPLETE, value=0.0, system_attrs=attributes)
    trial.number = 0
    return trial


def same(one: Any, other: Any) -> bool:
    """Whether two optimizers, or members of theirs, are the same bit for bit."""
    if hasattr(one, "__dict__") and type(one).__module__.startswith("cmaes"):
        members = one.__dict__.keys() - {"_rng", "_funhist_values"}
        return type(one) is type(other) and all(same(getattr(one, each), getattr(other, each)) for each in members)
    if isinstance(one, np.ndarray):
        alike = one.dtype == other.dtype and one.flags.c_contiguous == other.flags.c_contiguous
        return alike and np.array_equal(one, other)
    return type(one) is type(other) and bool(one == other)


def read(trial: FrozenTrial) -> Any:
    return restore(trial, "cma:optimizer", DIMS, "study.journal")


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("kind", list(KINDS))
def test_an_optimizer_comes_back_bit_for_bit(kind: str, protocol: int) -> None:
    content = pickle.dumps(optimizer_of(kind), protocol)
    found, own = read(stored(content)), pickle.loads(content)
    assert same(found, own)
    assert found._funhist_values.shape == own._funhist_values.shape if kind != "margin" else found._n_zdim == 0
    inner = (found._cma, own._cma) if kind == "margin" else (found, own)
    for each in inner:
        each._rng.seed(7)
    assert np.array_equal(found.ask(), own.ask())


def test_modules_of_numpy_1_are_known() -> None:
    own = optimizer_of()
    content = pickle.dumps(own, 3).replace(b"numpy._core.", b"numpy.core.")
    assert np.array_equal(read(stored(content)).mean, own.mean)


def test_a_trial_without_one_has_none() -> None:
    assert read(numbered({})) is None


class Runs:
    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self._made = (call, arguments)

    def __reduce__(self) -> Any:
        return self._made


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (os.mkdir, "posix.mkdir"),
        (eval, "builtins.eval"),
        (getattr, "builtins.getattr"),
        (np.load, "numpy.load"),
        (cmaes.get_warm_start_mgd, "cmaes._warm_start.get_warm_start_mgd"),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_what_a_pickle_names_is_not_run(call: Callable[..., Any], named: str, inside: bool, tmp_path: Path) -> None:
    made = tmp_path / "made"
    arguments = {os.mkdir: (str(made),), eval: (f"__import__('os').mkdir({str(made)!r})",)}.get(call, (made, "x"))
    planted: Any = Runs(call, *arguments)
    if inside:
        own = optimizer_of()
        own._mean = planted
        planted = own
    with pytest.raises(RunError) as caught:
        read(stored(pickle.dumps(planted)))
    assert str(caught.value).startswith(f"study.journal: trial 0: the sampler state names {named}, which is not allow")
    assert "choose another --out" in str(caught.value)
    assert not made.exists()


def changed(**members: Any) -> bytes:
    own = optimizer_of()
    for name, value in members.items():
        setattr(own, f"_{name}", value)
    return pickle.dumps(own)


@pytest.mark.parametrize(
    "content",
    [
        "no hex",
        "abc",
        "",
        b"",
        b"\x80",
        pickle.dumps(optimizer_of())[:-40],
        pickle.dumps(None),
        pickle.dumps({"_mean": 1}),
        pickle.dumps(np.zeros(3)),
        pickle.dumps(cmaes.CMA),
        b"(" * 100_000,
        b"\x80\x04" + b"]\x94" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\x04Nr\xff\xff\xff\xff.",  # kept in a place that does not exist
        changed(mean=np.zeros(4)),
        changed(mean=np.full(DIMS, np.nan)),
        changed(mean=np.zeros(DIMS, np.float32)),
        changed(mean=np.array([None] * DIMS)),
        changed(sigma="0.2"),
        changed(sigma=float("inf")),
        changed(n_max_resampling=2**40),
        changed(popsize=2**40),
        changed(popsize=3),
        changed(g=-1),
        changed(D=np.zeros(DIMS)),
        changed(lr_adapt=1),
        changed(more=1),
        pickle.dumps(cmaes.CMA(mean=np.full(3, 0.5), sigma=0.2, n_max_resampling=30, bounds=BOUNDS[:3])),
        pickle.dumps(cmaes.SepCMA(mean=np.full(3, 0.5), sigma=0.2, n_max_resampling=30, bounds=BOUNDS[:3])),
    ],
)
def test_a_damaged_one_is_one_error(content: bytes | str) -> None:
    with pytest.raises(RunError, match=r"^study\.journal: trial 0: the sampler state is damaged \(.+\); choose anoth"):
        read(stored(content))


@pytest.mark.parametrize("value", [None, 5, ["80"], {"a": "80"}])
def test_parts_that_are_no_text_are_damage(value: Any) -> None:
    with pytest.raises(RunError, match="sampler state is damaged"):
        read(numbered({"cma:optimizer:0": value}))


def test_a_missing_part_is_damage() -> None:
    trial = stored(pickle.dumps(optimizer_of()))
    del trial.system_attrs["cma:optimizer:1"]
    with pytest.raises(RunError, match="sampler state is damaged"):
        read(trial)


@pytest.mark.parametrize("name", ["cmaes", "optuna.samplers:CmaEsSampler"])
def test_a_users_own_cma_es_is_read_with_the_same_care(name: str, tmp_path: Path) -> None:
    labels = [f"x{number}" for number in range(DIMS)]
    study = optuna.create_study(direction="minimize", sampler=CmaEsSampler(seed=0, popsize=4))
    study.optimize(lambda trial: sum(trial.suggest_float(label, -1, 1) for label in labels), n_trials=6)
    made = tmp_path / "made"
    planted = pickle.dumps(Runs(os.mkdir, str(made))).hex()
    for trial in study.trials:
        for key in [key for key in trial.system_attrs if "optimizer" in key]:
            study._storage._get_trial(trial._trial_id).system_attrs[key] = planted  # type: ignore[attr-defined]
    trials = study.get_trials(deepcopy=False)
    study.sampler = make_sampler(name, 0, 4, trials, labels, "here")
    with pytest.raises(RunError, match=r"^here: trial 5: the sampler state names posix\.mkdir"):
        study.ask(dict.fromkeys(labels, optuna.distributions.FloatDistribution(-1, 1)))
    assert not made.exists()
