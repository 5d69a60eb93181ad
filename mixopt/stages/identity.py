"""What must not change between the sessions of one study."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mixopt.assemble import Assembly
from mixopt.spec import StudySpec
from mixopt.values.groups import make_groups
from mixopt.values.samples import VALIDATION
from mixopt.weights import saving


def study_identity(spec: StudySpec, assembly: Assembly, sources: tuple[str, ...]) -> dict[str, Any]:
    """Plain JSON values by a name that a user knows them by.

    Args:
        spec: The options.
        assembly: What they were made into.
        sources: The names of the rows and checkpoints that ``--from`` lists.
    """
    objective = assembly.objective
    pool = objective.pool
    start = spec.start
    if start.endswith((".json", ".safetensors")):
        start = _short(saving.load_recipe(Path(start)).to_json())
    steering = {
        name: [weight, objective.evaluators[name].split.fingerprint[:12]] for name, weight in spec.steering.items()
    }
    return {
        **{f"checkpoint {name}": digest[:12] for name, digest in pool.fingerprints.items()},
        "base": pool.base,
        "family": _short(json.dumps(assembly.family.identity(), sort_keys=True)),
        "groups": "auto" if spec.groups is None else make_groups(spec.groups, pool.sizes).as_dict(),
        "ingredients": spec.ingredient_count,
        **({"from": list(sources)} if sources else {}),
        f"data {VALIDATION}": objective.evaluators[VALIDATION].split.fingerprint[:12],
        "select": steering or None,
        "shifts": dict(assembly.shifts) or None,
        "metric": spec.metric,
        "sampler": spec.sampler_name,
        **({"pareto": True} if spec.pareto else {}),
        **({"refine": spec.refine} if spec.refine else {}),
        "population": spec.population,
        **({"evidence": spec.evidence} if spec.sampler_name == "surface" else {}),
        "space": spec.space,
        "radius": spec.radius,
        "start": start,
        "greedy_rule": spec.greedy_rule,
        "seed": spec.seed,
        "confirm": spec.confirm,
        "race": spec.race,
        "signal": spec.signal,
        "dtype": spec.dtype,
        # A journal lies in its run folder; a database may be shared, and one study belongs to one folder.
        "run folder": None if spec.storage is None else str(spec.folder.resolve()),
        "batchnorm": assembly.batchnorm.key,
        **assembly.resolved,
        **({"compile": True} if spec.compile else {}),
        "device": assembly.device.type,
    }


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
