"""What was scored before a search's trials, for samplers that learn from logits."""

from __future__ import annotations

import numpy as np

from mixopt.scoring.objective import Objective
from mixopt.stages.plan import SearchPlan
from mixopt.stages.start import Start
from mixopt.study import Known
from mixopt.values.mix import Mix, rows_on
from mixopt.values.samples import VALIDATION

# Of all that a cache holds, so many mixes, those nearest to the start.
MOST = 200


def evidence_of_pool(plan: SearchPlan, start: Start, objective: Objective) -> list[Known]:
    """The mixes that the baselines scored, or with ``--evidence cache`` every mix of these checkpoints in the cache.

    In an order that depends on the mixes alone, so that it does not matter who scored them first. Of another pool's
    runs in the same cache, those count that mixed only checkpoints which this pool has too.

    Args:
        plan: Which of the two, and whether any.
        start: The baselines, and what they asked for.
        objective: Whose cache; its samples that tune are those on which they were scored.
    """
    if not plan.surface:
        return []
    known = {objective.key(mix, VALIDATION): mix for mix in objective.scorer.known_mixes(VALIDATION)}
    asked = set(start.tally.asked)
    for entry in start.baselines.values():
        asked |= entry.tally.asked.keys()
    if plan.evidence == "run":
        known = {key: mix for key, mix in known.items() if key in asked}
    found = [(key, mix) for key, mix in sorted(known.items()) if key in asked or _is_whole(objective, mix)]
    if len(found) > MOST:
        # Of equals, in the order of the keys.
        found = sorted(found, key=lambda each: _distance(start.mix, each[1]))[:MOST]
    return [Known(mix, objective.tuning) for _, mix in found]


def _is_whole(objective: Objective, mix: Mix) -> bool:
    """Whether the cache holds what a mix does on all samples that tune."""
    outcomes = objective.scorer.stored(mix, VALIDATION, ("logits",))
    return outcomes is not None and len(outcomes) >= objective.tuning


def _distance(start: Mix, mix: Mix) -> float:
    """How far a mix's coefficients lie from the start's, whatever layer groups each has."""
    groups = start.groups.refine(mix.groups)
    return float(np.linalg.norm(rows_on(mix, groups) - rows_on(start, groups)) / np.sqrt(len(groups)))
