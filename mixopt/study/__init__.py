"""The search: Optuna's samplers propose points of a space, whole generations at a time, resumable at any point.

The only package that knows Optuna. Its trials, studies and samplers are Optuna's own objects: a run's storage opens
with plain ``optuna.load_study``, and `optuna_objective` is an ordinary Optuna objective.
"""

from optuna import Study

from mixopt.study.beginning import Known, evidence_of, keep_space
from mixopt.study.boundary import storage_errors, without_password
from mixopt.study.crossfit import CrossFit, Procedure, cross_fit, regions_of
from mixopt.study.evidence import Evidence
from mixopt.study.folds import make_folds
from mixopt.study.fronts import front
from mixopt.study.landscape import Landscape
from mixopt.study.reading import read_importances, read_trials
from mixopt.study.samplers import SURFACE, check_sampler, make_sampler, population_of
from mixopt.study.schedule import Schedule
from mixopt.study.storage import open_storage
from mixopt.study.studies import (
    best_mixes,
    best_of_rounds,
    check_identity,
    complete_trials,
    count_states,
    has_begun,
    numbered,
    open_second,
    open_study,
    race_counts,
    recall_trials,
    trial_mixes,
)
from mixopt.study.surface_sampler import SurfaceSampler
from mixopt.study.trials import optuna_objective, run_trials

__all__ = [
    "SURFACE",
    "CrossFit",
    "Evidence",
    "Known",
    "Landscape",
    "Procedure",
    "Schedule",
    "Study",
    "SurfaceSampler",
    "best_mixes",
    "best_of_rounds",
    "check_identity",
    "check_sampler",
    "complete_trials",
    "count_states",
    "cross_fit",
    "evidence_of",
    "front",
    "has_begun",
    "keep_space",
    "make_folds",
    "make_sampler",
    "numbered",
    "open_second",
    "open_storage",
    "open_study",
    "optuna_objective",
    "population_of",
    "race_counts",
    "read_importances",
    "read_trials",
    "recall_trials",
    "regions_of",
    "run_trials",
    "storage_errors",
    "trial_mixes",
    "without_password",
]
