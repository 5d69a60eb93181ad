"""What a run folder's journal says, for reports; nothing is written."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState

from mixopt.errors import RunError, names
from mixopt.reporting.rows import TrialPoint
from mixopt.study.boundary import RESTORE, storage_errors
from mixopt.study.records import SECOND, check_study
from mixopt.study.storage import open_reading
from mixopt.study.studies import numbered

# Fewer trials say nothing of what mattered.
IMPORTANCE_TRIALS = 20


def read_trials(journal: Path) -> list[TrialPoint]:
    """The complete trials of a run folder's journal, in number order, for reports; nothing is written.

    Args:
        journal: The journal file of a run that has ended.

    Returns:
        Trials of several values are left out. The numbers of a second round go on counting, without its
        start, which is a trial of the first.

    Raises:
        RunError: Not a journal of one run, or a damaged one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_reading(journal)
    with storage_errors(journal, None):
        known = sorted(optuna.get_all_study_names(storage), key=len)
        if not known or (len(known) > 1 and [f"{known[0]}{SECOND}"] != known[1:]):
            raise RunError(f"{journal}: expected the study of one run, found {names(known) or 'none'}; {RESTORE}")
        studies = [optuna.load_study(study_name=name, storage=storage) for name in known]
        for study in studies:
            check_study(study)
    return [
        TrialPoint(number, trial.values[0], trial.user_attrs.get("images", 0), bool(trial.user_attrs.get("estimated")))
        for number, trial in numbered(studies).items()
        if trial.state == TrialState.COMPLETE and len(trial.values) == 1 and (trial.number or not number)
    ]


def read_importances(journal: Path) -> dict[str, float]:
    """What the value of a run's trials varied by: dimension to share, the first round's (PED-ANOVA, see Optuna).

    Watanabe et al., "PED-ANOVA: efficiently quantifying hyperparameter importance in arbitrary subspaces", IJCAI 2023,
    arXiv 2304.10255: of the best tenth of the trials, so that it tells what good mixes have in common.

    Args:
        journal: As for `read_trials`.

    Returns:
        Nothing where fewer than `IMPORTANCE_TRIALS` trials tell, or they have several values each.

    Raises:
        RunError: As `read_trials`.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_reading(journal)
    with storage_errors(journal, None):
        name = min(optuna.get_all_study_names(storage), key=len)
        study = optuna.load_study(study_name=name, storage=storage)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if len(study.directions) > 1 or len(complete) < IMPORTANCE_TRIALS or len({each.value for each in complete}) < 2:
            return {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            evaluator = optuna.importance.PedAnovaImportanceEvaluator()
            found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {label: float(share) for label, share in found.items() if np.isfinite(share)}
